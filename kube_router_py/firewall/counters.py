"""Which rules of a pod's chain count what. Pure.

For those who read counters with the rules (iptables-save(8) with ``-c``): the rules of a chain are
in the kernel as ``chains.pod_rules`` has them, in the same order.
"""

import re
from collections.abc import Sequence

from msgspec import Struct

from kube_router_py.firewall.names import POLICY_CHAIN
from kube_router_py.marks import ADMITTED

_JUMP = re.compile(f"-j ({POLICY_CHAIN}[A-Z2-7]{{16}})$")
_UNADMITTED = f"-m mark ! --mark {ADMITTED:#x}/{ADMITTED:#x} "
_REFUSED = "-j REJECT "
_AUDITED = "-j RETURN"


class PodCounters(Struct, frozen=True):
    """Rules of a pod's chain, by their position (0 is the first).

    ``refused`` counts what is refused, with ``is_audited`` what would be. ``policies`` by the name
    of their chain (``names.policy_chain``), in order: a policy's jump counts the packets that no
    policy before it admitted, so that it admitted its own less those of the next jump, and the last
    one less those of ``refused``.
    """

    refused: int
    is_audited: bool
    policies: dict[str, int]

    def admitted(self, packets: Sequence[int]) -> dict[str, int]:
        """What each policy admitted, of the packets that each rule of the chain counts.

        Counters of several processors are summed while packets pass: never below 0.
        """
        places = [*self.policies.values(), self.refused]
        return {
            name: max(0, packets[place] - packets[following])
            for (name, place), following in zip(self.policies.items(), places[1:], strict=True)
        }


def pod_counters(rules: Sequence[str]) -> PodCounters | None:
    """Of the rules of a pod's chain (``KUBE-POD-FW-``), without ``-A`` and the name of the chain.

    None for what is no such chain, or one that others have changed.
    """
    policies: dict[str, int] = {}
    for index, rule in enumerate(rules):
        if match := _JUMP.search(rule):
            policies[match[1]] = index
        elif rule.startswith(_UNADMITTED) and _REFUSED in rule:
            return PodCounters(index, False, policies)
        elif rule.startswith(_UNADMITTED) and rule.endswith(_AUDITED):
            return PodCounters(index, True, policies)
    return None

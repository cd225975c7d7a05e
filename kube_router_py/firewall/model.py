"""NetworkPolicies as the compiler sees them: parsed, canonical, hashable. Pure.

What could not be understood is not in here: a peer or port entry that is broken is left out of a
list that stays a list, so that it matches nothing (never everything), and is told as a Problem.
"""

from enum import StrEnum

from msgspec import Struct

from kube_router_py.cluster.selectors import EVERYTHING, Selector
from kube_router_py.problem import Problem


class Direction(StrEnum):
    """Seen from the pod: who may reach it, and whom it may reach."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Selection(Struct, frozen=True, order=True):
    """Pods by label, in one namespace (``namespace``) or in those that a selector selects by
    their labels (``namespace`` is ``""`` then)."""

    namespace: str = ""
    namespaces: Selector = EVERYTHING
    pods: Selector = EVERYTHING

    def __str__(self) -> str:
        where = self.namespace or f"namespaces {self.namespaces}"
        return f"pods {self.pods} in {where}"


ALL_PODS = Selection()


class Block(Struct, frozen=True, order=True):
    """Addresses of one family (``inet``, ``inet6``) as disjoint networks, sorted; may be none. Of a
    block with many exceptions these follow, each with the word ``nomatch``.

    ``text`` says how it was written.
    """

    family: str
    networks: tuple[str, ...]
    text: str


class PortRange(Struct, frozen=True, order=True):
    """Destination ports ``first`` to ``last`` of a protocol (``tcp``); 0 to 65535 is all of it,
    and asks for no port at all."""

    protocol: str
    first: int = 0
    last: int = 65535


class PortName(Struct, frozen=True, order=True):
    """The port that the destination pod calls by this name, in this protocol."""

    protocol: str
    name: str


Peer = Selection | Block
Port = PortRange | PortName


class Rule(Struct, frozen=True):
    """``index`` as in the manifest. None: any peer, any port (and protocol); ``()``: none."""

    index: int
    peers: tuple[Peer, ...] | None
    ports: tuple[Port, ...] | None


class Policy(Struct, frozen=True):
    """``target``: the pods it isolates, None for none. ``rules`` has the directions it is about.
    ``audit``: whether it only says what it would refuse; None: its Namespace decides."""

    key: str
    target: Selection | None
    rules: dict[Direction, tuple[Rule, ...]]
    problems: tuple[Problem, ...] = ()
    audit: bool | None = None


class NamespaceFacts(Struct, frozen=True):
    """``is_audited``: policies that do not say otherwise are."""

    labels: dict[str, str]
    is_audited: bool = False
    problems: tuple[Problem, ...] = ()


class PodFacts(Struct, frozen=True):
    """A live pod: one that has addresses of its own and is not finished.

    ``addresses`` by family (``inet``, ``inet6``), in canonical spelling. ``ports``: the number of a
    named port, by (protocol, name).
    """

    key: str
    namespace: str
    labels: dict[str, str]
    addresses: dict[str, tuple[str, ...]]
    ports: dict[tuple[str, str], int]
    is_local: bool

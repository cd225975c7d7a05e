"""A node's status in a few words, as it stands in an annotation for ``status --cluster``. Pure."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import DecodeError, Meta, Struct, ValidationError, json

# What is wrong may be a long story; the whole annotation stays below a kilobyte.
_MOST_BYTES = 500
_PARTS = ("service_proxy", "firewall", "router")

# Others may write what they like: it must neither break the table nor what is made of it.
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
Words = Annotated[str, Meta(max_length=_MOST_BYTES)]


class NodeSummary(Struct, frozen=True, omit_defaults=True):
    """None: that part of the agent does not run.

    ``sessions`` and ``established`` count BGP sessions, ``announced`` addresses of Services by BGP,
    ``answered`` those that this node answers for by ARP or NDP.
    """

    ready: bool = False
    reason: Words = ""
    version: Words = ""
    virtual_servers: Count | None = None
    policy_chains: Count | None = None
    sessions: Count | None = None
    established: Count | None = None
    announced: Count | None = None
    answered: Count | None = None
    repaired: Count = 0
    problems: Count = 0


def summarize(status: Mapping[str, Any]) -> NodeSummary:
    """From what the agent says of itself (``observe.health.Health.status``)."""
    proxy, firewall = status.get("service_proxy", {}), status.get("firewall", {})
    router, layer2 = status.get("router"), status.get("layer2")
    neighbors = router.get("neighbors", ()) if router else ()
    addresses = layer2.get("addresses", ()) if layer2 else ()
    return NodeSummary(
        ready=status["ready"],
        reason=_cut(status["reason"]),
        version=status["version"],
        virtual_servers=proxy.get("virtual_servers"),
        policy_chains=firewall.get("policy_chains"),
        sessions=len(neighbors) if router else None,
        established=sum(each["state"] == "Established" for each in neighbors) if router else None,
        announced=router.get("announced_services") if router else None,
        answered=sum(each["answered_here"] for each in addresses) if layer2 else None,
        repaired=sum(status.get(part, {}).get("repaired", 0) for part in _PARTS),
        problems=status["problem_count"],
    )


def _cut(words: str) -> str:
    # As bytes: others than ASCII have more than one, and half a surrogate pair is no text.
    return words.encode(errors="replace")[:_MOST_BYTES].decode(errors="ignore")


def encode(summary: NodeSummary) -> str:
    """The annotation."""
    return json.encode(summary).decode()


def decode(text: str) -> NodeSummary | None:
    """The other way round; None for what is none (others may have written it)."""
    try:
        return json.decode(text, type=NodeSummary)
    except (DecodeError, ValidationError, RecursionError):
        return None

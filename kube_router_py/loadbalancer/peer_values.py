"""How patient nodes are with each other, and what one knows of all: values of ``peers``. Pure."""

from msgspec import Struct

from kube_router_py.loadbalancer.heartbeat import Heartbeat, Standing

_EASY_MEMBERS = 250


class Timing(Struct, frozen=True):
    """``interval_s`` between heartbeats; silent for ``silence_s``, or echoing what is older than
    ``proof_s``, a node is dead; a returning node is heard for ``damping_s`` before it counts, for
    ``settle_s`` where nobody serves; one that hears nobody begins after ``lonely_s``, or after
    ``alone_s`` where there is nobody; a pause of ``slept_s`` was sleep. ``head_start_s`` is between
    a node's word that it counts and its first answer: the others know by then, and wait for its
    claim."""

    interval_s: float = 0.5
    silence_s: float = 2.0
    proof_s: float = 3.0
    damping_s: float = 5.0
    settle_s: float = 1.0
    lonely_s: float = 3.0
    alone_s: float = 1.0
    slept_s: float = 2.0
    head_start_s: float = 0.2


def heartbeat_timing(members: int) -> Timing:
    """Two packets per second to each of up to 250 nodes; beyond, each node sends 500 per second,
    whatever their number, and a death is found out that much later."""
    factor = max(1.0, members / _EASY_MEMBERS)
    plain = Timing()
    return Timing(
        interval_s=plain.interval_s * factor,
        silence_s=plain.silence_s * factor,
        proof_s=plain.proof_s * factor,
        damping_s=plain.damping_s * factor,
        settle_s=plain.settle_s * factor,
        lonely_s=plain.lonely_s * factor,
    )


LEASE_TIMING = Timing(
    interval_s=10.0,
    silence_s=30.0,
    proof_s=30.0,
    settle_s=0.0,
    damping_s=0.0,
    lonely_s=12.0,
    head_start_s=2.0,
)
"""Leases are renewed so often; a node that was away counts as soon as it says so."""


class View(Struct, frozen=True):
    """What this node knows. ``candidates`` count, this one among them if it does; ``may_answer``
    concerns this one; ``unheard`` were never heard of."""

    candidates: frozenset[str] = frozenset()
    may_answer: bool = False
    is_fenced: bool = False
    standing: Standing = Standing.JOINING
    alive: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    unheard: frozenset[str] = frozenset()
    members: int = 1


class Round(Struct, frozen=True):
    """What is to be sent now, by the receiver's name, and in how many seconds to ask again."""

    heartbeats: tuple[tuple[str, Heartbeat], ...]
    again_in_s: float

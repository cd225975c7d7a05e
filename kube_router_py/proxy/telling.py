"""What the proxy did, as lines of the log that name the Service: whoever looks for one finds its
story, who made a virtual server come and go and who changed it from outside."""

import logging
from collections.abc import Container, Sequence

from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.model import IpvsOperation, IpvsTable, Verb, Vip, VirtualServerKey
from kube_router_py.proxy.plan import Plan

_log = logging.getLogger(__name__)

# So many lines tell a story; of a flushed table with 60,000 entries the number says enough.
_MOST_LINES = 20
_MOST_NAMES = 50
_MOST_WRITES = 6
# What a Service becomes or ceases to be; its backends change all the time.
_STRUCTURE = frozenset(
    (Verb.ADD_VIRTUAL_SERVER, Verb.SET_VIRTUAL_SERVER, Verb.DELETE_VIRTUAL_SERVER)
)


class Telling:
    """The lines of one controller. ``desired`` knows whose virtual server is whose."""

    def __init__(self, desired: Desired) -> None:
        self._desired = desired
        # Those that nobody asks for any more, until they are gone from the kernel.
        self._former: dict[VirtualServerKey, str] = {}

    def note(self, service: str, changes: Changes) -> None:
        """Service ``service`` was compiled anew."""
        for key in changes.servers:
            if self._desired.owner(key) is None:
                self._former[key] = service
            else:
                self._former.pop(key, None)

    def owner(self, key: VirtualServerKey) -> str:
        """The Service that a virtual server is or was of; empty for nobody's."""
        return self._desired.owner(key) or self._former.get(key, "")

    def programmed(
        self, planned: Plan, refused: Container[VirtualServerKey], *, full: bool
    ) -> None:
        """A plan was carried out, but for what the kernel ``refused``.

        Of a turn over everything only the numbers are told: it is the start, or a repair.
        """
        written: dict[str, list[IpvsOperation]] = {}
        for operation in (*planned.grow, *planned.shrink):
            if operation.key not in refused:
                written.setdefault(self.owner(operation.key), []).append(operation)
        _log.log(
            logging.INFO if full else logging.DEBUG,
            "programmed services=%d operations=%d addresses=%d",
            len(written),
            len(planned.grow) + len(planned.shrink),
            len(planned.put_vips) + len(planned.remove_vips),
        )
        if not full:
            self._each(written)
        for key in self._former.keys() & {each.key for each in planned.shrink if _ends(each)}:
            if key not in refused:
                del self._former[key]

    def _each(self, written: dict[str, list[IpvsOperation]]) -> None:
        told = 0
        for service, operations in sorted(written.items()):
            is_news = any(each.verb in _STRUCTURE for each in operations)
            if is_news:
                told += 1
            level = logging.INFO if is_news and told <= _MOST_LINES else logging.DEBUG
            if _log.isEnabledFor(level):
                _log.log(level, "programmed service=%s what=%r", service, _all(operations))
        if told > _MOST_LINES:
            _log.info("programmed more services count=%d", told - _MOST_LINES)

    def held(self, count: int) -> None:
        """So many stay until it is known whose they are."""
        if count:
            _log.warning(
                "virtual servers and addresses that nothing asks for are kept until this node's "
                "Node and every Service can be read count=%d",
                count,
            )

    def repaired(
        self,
        planned: Plan,
        before: tuple[IpvsTable, dict[Vip, bytes]] | None,
        found: tuple[IpvsTable, dict[Vip, bytes]],
        in_flight: Container[VirtualServerKey | Vip],
    ) -> int:
        """What a plan repairs that was made right after reading: what others have changed. Returns
        with how many operations.

        ``before`` stood as far as we knew, ``found`` was read; ``in_flight`` may be our own doing.
        """
        changed: list[tuple[str, str]] = []
        strange: list[VirtualServerKey] = []
        for operation in (*planned.grow, *planned.shrink):
            key = operation.key
            if key in in_flight:
                continue
            if operation.verb is Verb.DELETE_VIRTUAL_SERVER:
                if before is None or key not in before[0]:
                    strange.append(key)
            elif before is not None and before[0].get(key) != found[0].get(key):
                changed.append((self.owner(key), _words(operation)))
        if before is not None:
            changed += [
                (self._claimants(vip), f"put address {vip}")
                for vip in planned.put_vips
                if vip not in in_flight
                and before[1].get(vip, found[1].get(vip)) != found[1].get(vip)
            ]
            changed += [
                (self._claimants(vip), f"remove address {vip}")
                for vip in planned.remove_vips
                if vip not in before[1] and vip not in in_flight
            ]
        for service, what in changed[:_MOST_LINES]:
            _log.warning("repaired what others had changed service=%s what=%r", service, what)
        if len(changed) > _MOST_LINES:
            more = len(changed) - _MOST_LINES
            _log.warning("repaired more that others had changed count=%d", more)
        self._removed(strange, found[0])
        # Before the first look nothing is known that could have changed.
        return len(changed) + len(strange) if before is not None else 0

    def _removed(self, strange: Sequence[VirtualServerKey], table: IpvsTable) -> None:
        """Somebody may have to make these again: every one is named."""
        names = [f"{key} (scheduler {table[key].config.scheduler})" for key in strange]
        at_once = 1 if len(names) <= _MOST_LINES else _MOST_NAMES
        for first in range(0, len(names), at_once):
            _log.warning(
                "removed what no Service asked for since the start what=%r (--excluded-cidrs keeps "
                "what is in a network that it names)",
                ", ".join(names[first : first + at_once]),
            )

    def _claimants(self, vip: Vip) -> str:
        return ",".join(sorted(self._desired.vip_claimants(vip)))


def _ends(operation: IpvsOperation) -> bool:
    return operation.verb is Verb.DELETE_VIRTUAL_SERVER


def _all(operations: Sequence[IpvsOperation]) -> str:
    more = f"; and {len(operations) - _MOST_WRITES} more" if len(operations) > _MOST_WRITES else ""
    return "; ".join(_words(each) for each in operations[:_MOST_WRITES]) + more


def _words(operation: IpvsOperation) -> str:
    if operation.real is not None:
        return f"{operation} weight {operation.real.weight}"
    if operation.config is not None:
        return f"{operation} scheduler {operation.config.scheduler}"
    return str(operation)

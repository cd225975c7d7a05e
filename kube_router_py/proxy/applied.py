"""What stands in the kernel as far as we know, and the thin hand that changes it."""

import errno
import logging
from collections.abc import Callable, Container, Iterable, Mapping

from kube_router_py.kernel.ports import HostPorts, OperationFailure
from kube_router_py.proxy.model import (
    IpvsOperation,
    IpvsTable,
    Verb,
    Vip,
    VirtualServerKey,
    VirtualServerState,
)
from kube_router_py.proxy.plan import Plan
from kube_router_py.proxy.telling import Telling

_log = logging.getLogger(__name__)


class Applied:
    """Virtual servers and addresses that stand.

    ``refused`` holds, by virtual server, the first write that the kernel refused; the virtual
    server stands as it was but for that write. Not so those in ``unknown``: the refusal shows that
    others have changed them, and they are left alone until the next ``read``. So are
    ``refused_vips``, with the reason. ``withheld`` are addresses none of whose virtual servers
    could be made: to be put once one stands. ``repaired`` counts operations that put right what
    others had changed.
    """

    def __init__(self) -> None:
        self.servers: IpvsTable = {}
        self.vips: dict[Vip, bytes] = {}
        self.refused: dict[VirtualServerKey, OperationFailure] = {}
        self.unknown: set[VirtualServerKey] = set()
        self.refused_vips: dict[Vip, str] = {}
        self.withheld: set[Vip] = set()
        self.repaired = 0
        self.is_known = False
        self.was_read = False
        self._before: tuple[IpvsTable, dict[Vip, bytes]] | None = None
        # What a write that others did not make may have changed: nothing to log as a repair.
        self._in_flight: set[VirtualServerKey | Vip] = set()

    def read(
        self,
        ports: HostPorts,
        is_ours: Callable[[VirtualServerKey], bool],
        is_our_vip: Callable[[Vip], bool],
    ) -> None:
        """Learn everything that stands and is ours."""
        self._before = (self.servers, self.vips) if self.was_read else None
        self.is_known = False
        table, vips = ports.ipvs.read(), ports.links.read_vips()
        self.servers = {key: state for key, state in table.items() if is_ours(key)}
        self.vips = {vip: source for vip, source in vips.items() if is_our_vip(vip)}
        self.refused.clear()
        self.unknown.clear()
        self.refused_vips.clear()
        self.withheld.clear()
        self.is_known = self.was_read = True
        if self._before is None:
            _log.info("adopted virtual_servers=%d addresses=%d", len(self.servers), len(self.vips))

    def take_up(self, servers: Iterable[VirtualServerKey]) -> set[VirtualServerKey]:
        """Those of ``servers`` that can be planned for; what was refused to them counts no more."""
        known = {key for key in servers if key not in self.unknown}
        for key in known.intersection(self.refused):
            del self.refused[key]
        return known

    def apply(
        self,
        ports: HostPorts,
        planned: Plan,
        targets: Mapping[VirtualServerKey, VirtualServerState],
    ) -> list[OperationFailure]:
        """Carry out a plan; returns what IPVS refused, which is in ``refused`` from now on.

        Raises KernelError if the kernel cannot be asked at all: then nothing is known any more.
        """
        self.is_known, was_known = False, self.is_known
        self._in_flight.update(each.key for each in (*planned.grow, *planned.shrink))
        self._in_flight.update(planned.put_vips, planned.remove_vips)
        failures = ports.ipvs.apply(planned.grow) if planned.grow else []
        self._note(planned.grow, failures, targets, {each.key for each in planned.shrink})
        if planned.put_vips or planned.remove_vips:
            self._apply_vips(ports, planned)
        shrink = planned.shrink
        if self.refused:
            kept = {key for key in self.refused if self._must_keep(key, targets.get(key))}
            shrink = tuple(each for each in shrink if each.key not in kept)
        late = ports.ipvs.apply(shrink) if shrink else []
        self._note(shrink, late, targets, ())
        self._in_flight = set(self.refused_vips)
        self.is_known = was_known
        return [*failures, *late]

    def _must_keep(self, key: VirtualServerKey, target: VirtualServerState | None) -> bool:
        """Whether a virtual server without its new real servers must not lose the old ones."""
        if key in self.unknown:
            return True
        stands = self.servers.get(key)
        if target is None or stands is None:
            return False
        wanted = [real for real, value in target.real_servers.items() if value.weight]
        found = stands.real_servers
        return bool(wanted) and not any(real in found and found[real].weight for real in wanted)

    def _note(
        self,
        operations: Iterable[IpvsOperation],
        failures: list[OperationFailure],
        targets: Mapping[VirtualServerKey, VirtualServerState],
        unfinished: Container[VirtualServerKey],
    ) -> None:
        """Bring ``servers`` up to date with what was carried out.

        Those that are not ``unfinished``, and to which nothing was refused, are as wanted.
        """
        concerned: dict[VirtualServerKey, list[OperationFailure]] = {}
        for failure in failures:
            # Of several on one virtual server the first says it all.
            self.refused.setdefault(failure.operation.key, failure)
            concerned.setdefault(failure.operation.key, []).append(failure)
        partly: dict[VirtualServerKey, list[IpvsOperation]] = {}
        for operation in operations:
            key = operation.key
            if key in self.refused or key in unfinished:
                partly.setdefault(key, []).append(operation)
            elif operation.verb is Verb.DELETE_VIRTUAL_SERVER:
                self.servers.pop(key, None)
            else:
                self.servers[key] = targets[key]
        for key, attempted in partly.items():
            failed = concerned.get(key, [])
            if _shows_drift(failed):
                self.unknown.add(key)
            state = _after(self.servers.get(key), attempted, {each.operation for each in failed})
            if state is None:
                self.servers.pop(key, None)
            else:
                self.servers[key] = state

    def _apply_vips(self, ports: HostPorts, planned: Plan) -> None:
        # An address is put once one of its virtual servers stands.
        put = planned.put_vips
        self.withheld.difference_update(put, planned.remove_vips)
        absent = {
            Vip(key.family, key.address)
            for key in self.refused
            if key not in self.servers and key not in self.unknown
        }
        if absent.intersection(put):
            absent -= {Vip(key.family, key.address) for key in self.servers}
            self.withheld |= absent.intersection(put)
            put = {vip: source for vip, source in put.items() if vip not in absent}
        failures = ports.links.apply_vips(put, planned.remove_vips)
        self.refused_vips.update((failure.vip, failure.message) for failure in failures)
        for vip, source in put.items():
            if vip not in self.refused_vips:
                self.vips[vip] = source
        for vip in planned.remove_vips:
            if vip not in self.refused_vips:
                self.vips.pop(vip, None)

    def share(self, targets: Mapping[VirtualServerKey, VirtualServerState]) -> None:
        """Values that were read equal the desired ones but are copies: keep one of each."""
        for key in self.servers:
            if key in targets and self.servers[key] == targets[key]:
                self.servers[key] = targets[key]

    def tell(self, planned: Plan, telling: Telling) -> None:
        """Log what a plan made right after ``read`` repairs: what others have changed."""
        before, self._before = self._before, None
        in_flight, self._in_flight = self._in_flight, set()
        found = self.servers, self.vips
        self.repaired += telling.repaired(planned, before, found, in_flight)


def _shows_drift(failures: list[OperationFailure]) -> bool:
    """Whether refusals mean that the kernel's table is not what we took it for."""
    for failure in failures:
        operation = failure.operation
        if failure.errno == errno.EEXIST:
            return True
        if operation.config is not None:
            if failure.errno == errno.ESRCH:
                return True
            if operation.verb is Verb.ADD_VIRTUAL_SERVER:
                return False  # that its real servers are refused, too, goes without saying
        elif failure.errno in (errno.ESRCH, errno.ENOENT):
            return True
    return False


def _after(
    state: VirtualServerState | None,
    operations: Iterable[IpvsOperation],
    failed: set[IpvsOperation],
) -> VirtualServerState | None:
    """What one virtual server is after those of the operations that did not fail."""
    config = state.config if state else None
    found = dict(state.real_servers) if state else {}
    for operation in operations:
        if operation in failed:
            continue
        if operation.verb is Verb.DELETE_VIRTUAL_SERVER:
            config, found = None, {}
        elif operation.real_server is None:
            config = operation.config
        elif operation.real is None:
            found.pop(operation.real_server, None)
        else:
            found[operation.real_server] = operation.real
    return VirtualServerState(config, found) if config is not None else None

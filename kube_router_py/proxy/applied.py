"""What stands in the kernel as far as we know, and the thin hand that changes it."""

import logging
from collections.abc import Callable, Mapping

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

_log = logging.getLogger(__name__)

# So many lines tell a story; of a flushed table with 60,000 entries the number says enough.
_MOST_LINES = 20


class Applied:
    """Virtual servers and addresses that stand. ``refused`` and ``refused_vips`` are those of which
    the last write failed, with the reason: their state is unknown, and they are left alone until
    the next ``read``."""

    def __init__(self) -> None:
        self.servers: IpvsTable = {}
        self.vips: dict[Vip, bytes] = {}
        self.refused: dict[VirtualServerKey, OperationFailure] = {}
        self.refused_vips: dict[Vip, str] = {}
        self.is_known = False
        self._before: tuple[IpvsTable, dict[Vip, bytes]] | None = None

    def read(self, ports: HostPorts, is_ours: Callable[[VirtualServerKey], bool]) -> None:
        """Learn everything that stands and ``is_ours``."""
        self._before = (self.servers, self.vips) if self.is_known else None
        if self._before is not None:
            for key in self.refused:
                self.servers.pop(key, None)
        self.is_known = False
        table, vips = ports.ipvs.read(), ports.links.read_vips()
        self.servers = {key: state for key, state in table.items() if is_ours(key)}
        self.vips = vips
        self.refused.clear()
        self.refused_vips.clear()
        self.is_known = True
        if self._before is None:
            _log.info("adopted virtual_servers=%d addresses=%d", len(self.servers), len(vips))

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
        failures = ports.ipvs.apply(planned.grow) if planned.grow else []
        self._refuse(failures)
        if planned.put_vips or planned.remove_vips:
            self._apply_vips(ports, planned)
        # What could not be grown keeps what it has.
        shrink = [each for each in planned.shrink if each.key not in self.refused]
        late = ports.ipvs.apply(shrink) if shrink else []
        self._refuse(late)
        for operation in (*planned.grow, *shrink):
            key = operation.key
            if key in self.refused:
                continue
            if operation.verb is Verb.DELETE_VIRTUAL_SERVER:
                self.servers.pop(key, None)
            else:
                self.servers[key] = targets[key]
        self.is_known = was_known
        return [*failures, *late]

    def _refuse(self, failures: list[OperationFailure]) -> None:
        for failure in failures:
            # Of several on one virtual server the first says it all.
            self.refused.setdefault(failure.operation.key, failure)

    def _apply_vips(self, ports: HostPorts, planned: Plan) -> None:
        # An address is put once its virtual servers stand.
        early = {Vip(key.family, key.address) for key in self.refused}
        put = {vip: source for vip, source in planned.put_vips.items() if vip not in early}
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

    def tell(self, planned: Plan) -> None:
        """Log what a plan made right after ``read`` repairs: what others have changed."""
        before = self._before
        self._before = None
        lines: list[str] = []
        for operation in (*planned.grow, *planned.shrink):
            key = operation.key
            if operation.verb is Verb.DELETE_VIRTUAL_SERVER:
                if before is None or key not in before[0]:
                    lines.append(
                        f"removed: {key} (scheduler {self.servers[key].config.scheduler}), which "
                        "no Service asked for since the start; name its network in "
                        "--excluded-cidrs to keep it"
                    )
            elif before is not None and before[0].get(key) != self.servers.get(key):
                lines.append(f"repaired: {_words(operation)}")
        if before is not None:
            lines += [
                f"repaired: put address {vip}"
                for vip in planned.put_vips
                if vip in before[1] and before[1][vip] != self.vips.get(vip)
            ]
            lines += [
                f"repaired: remove address {vip}"
                for vip in planned.remove_vips
                if vip not in before[1]
            ]
        for line in lines[:_MOST_LINES]:
            _log.warning("%s", line)
        if len(lines) > _MOST_LINES:
            _log.warning("removed or repaired: %d more", len(lines) - _MOST_LINES)


def _words(operation: IpvsOperation) -> str:
    if operation.real is not None:
        return f"{operation} weight {operation.real.weight}"
    if operation.config is not None:
        return f"{operation} scheduler {operation.config.scheduler}"
    return str(operation)

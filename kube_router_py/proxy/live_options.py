"""The options of the service proxy as they are now: flags, pools of addresses, what was learned."""

import errno
from collections.abc import Callable, Iterable

from msgspec import structs

from kube_router_py.address_pools import AddressPools, load_balancer_ranges
from kube_router_py.kernel.ports import OperationFailure
from kube_router_py.proxy.scheduling import DEFAULT_SCHEDULER
from kube_router_py.proxy.settings import ProxyOptions


class LiveOptions:
    """Used in the loop's thread. ``given`` are the flags; ``pools`` are asked in ``follow_pools``,
    and count from then on."""

    def __init__(self, given: ProxyOptions, pools: Callable[[], AddressPools]) -> None:
        self._flags, self._pools = given.load_balancer_ranges, pools
        self.current = given

    def follow_pools(self) -> bool:
        """Take the pools as they are now; True if Services may have other addresses than before."""
        ranges = load_balancer_ranges(self._flags, self._pools())
        if ranges == self.current.load_balancer_ranges:
            return False
        self.current = structs.replace(self.current, load_balancer_ranges=ranges)
        return True

    def learn(self, failures: Iterable[OperationFailure]) -> None:
        """A scheduler whose module is missing: from the retry on, its Services get the default."""
        for failure in failures:
            config = failure.operation.config
            if failure.errno == errno.ENOENT and config and config.scheduler != DEFAULT_SCHEDULER:
                known = self.current.unloadable_schedulers
                self.current = structs.replace(
                    self.current, unloadable_schedulers=known | {config.scheduler}
                )

"""The healthCheckNodePorts of Services on this node tell what the proxy has programmed."""

import socket
from collections.abc import Iterable

from kube_router_py.observe.health_ports import HealthPorts, LocalEndpoints
from kube_router_py.problem import Problem
from kube_router_py.proxy.desired import Changes, Desired
from kube_router_py.proxy.settings import ThisNode


class HealthChecks:
    """A ``Follower``. ``is_restricted``: NodePorts are served at some of the node's addresses only
    (``--nodeport-addresses``), and so are these."""

    def __init__(self, ports: HealthPorts, *, is_restricted: bool) -> None:
        self._ports = ports
        self._is_restricted = is_restricted
        self._problems: tuple[Problem, ...] = ()
        self._addresses: tuple[str, ...] = ()

    def begin(self) -> None:
        """Nothing to prepare."""

    def follow(
        self, desired: Desired, node: ThisNode, changes: Changes, *, full: bool
    ) -> Iterable[Problem]:
        """Answer for Services that have been programmed."""
        addresses = self._addresses_of(node)
        if full or changes.services or self._problems or addresses != self._addresses:
            self._addresses = addresses
            self._update(desired)
        return self._problems

    def close(self) -> None:
        """Stop answering."""
        self._ports.close()

    def _addresses_of(self, node: ThisNode) -> tuple[str, ...]:
        if not self._is_restricted:
            return ("",)
        return tuple(
            socket.inet_ntop(family, packed)
            for family, each in node.node_port_addresses.items()
            for packed in each
        )

    def _update(self, desired: Desired) -> None:
        wanted = {
            check.port: LocalEndpoints(key, check.local_endpoints)
            for key, check in desired.health_checks()
        }
        refused = self._ports.update(wanted, self._addresses)
        self._problems = tuple(
            Problem(
                f"Service {wanted[port].service}",
                "spec.healthCheckNodePort",
                f"{reason}; load balancers take this node for unhealthy until whatever has the "
                "port is gone",
            )
            for port, reason in sorted(refused.items())
        )

"""The guided tour of a lab whose agents route: what BGP brings, tunnels, the way from outside.

Routes are read from the kernels, packets counted by them: by the tunnels' links, and by the IPVS
entries that each node has of the client's connections.
"""

import json
import shlex
from collections import Counter
from collections.abc import Callable

from kube_router_py.lab.ipvs_table import parse_connections
from kube_router_py.lab.tour import RATE, REQUESTS, Object, Tour, endpoint

CROSSING_REQUESTS = 10


class RoutesTour(Tour):
    """The tour, with what the route controller does before pods are scaled and agents killed."""

    def _more_steps(self) -> tuple[Callable[[], None], ...]:
        return (self._show_sessions, self._cross_nodes, self._reach_from_outside)

    def _show_sessions(self) -> None:
        kind = self._environ["LAB_ROUTER"]
        self._title(f"BGP: the router outside runs {kind}, each node FRR, started by its agent")
        show = shlex.split(self._environ["LAB_ROUTER_SHOW"])
        print(f"    $ kube-router-py lab exec router -- {shlex.join(show)}")
        self._block(self._inside("router", *show))
        self._wait("the Service's way from outside", lambda: self._ways(self._vip) == self._all())
        print("    $ kube-router-py lab exec router -- ip route")
        self._block(self._inside("router", "ip", self._family(), "route"))
        for node in self._lab.nodes:
            cidr = self._pod_cidr(node)
            self._check(self._ways(cidr) == {node}, f"the router sends {cidr} to {node}")
        names = ", ".join(self._lab.nodes)
        self._check(self._ways(self._vip) == self._all(), f"and {self._vip} to {names} alike")

    def _cross_nodes(self) -> None:
        self._title("Pod to pod: routes of BGP within a subnet, tunnels between subnets")
        first, *others = self._lab.nodes
        addresses = {
            pod["spec"]["nodeName"]: str(pod["status"]["podIP"]) for pod in self._visitors()
        }
        for node in others:
            self._cross(first, node, addresses[node])

    def _cross(self, source: str, node: str, address: str) -> None:
        cidr = self._pod_cidr(node)
        (route,) = [each for each in self._routes(source) if each["dst"] == cidr]
        print(f"    $ kube-router-py lab exec {source} -- ip route show {cidr}")
        self._block(self._inside(source, "ip", self._family(), "route", "show", cidr))
        is_tunnel = str(route["dev"]).startswith("tun-")
        before = self._packets(source, route["dev"])
        options = ("--count", str(CROSSING_REQUESTS), "--rate", str(RATE))
        found = self._finish(
            self._load(f"default/visitor-{source}", address, 8080, *options), stop=False
        )
        passed = self._packets(source, route["dev"]) - before
        if is_tunnel:
            way = f"through the tunnel {route['dev']}"
        else:
            self._check(route["protocol"] == "bgp", f"{source} learned the way by BGP", str(route))
            way = f"by {route['gateway']}"
        self._check(
            found["failures"] == 0 and found["attempts"] == CROSSING_REQUESTS,
            f"pod on {source} -> {endpoint(address, 8080)} on {node} {way}: "
            f"{found['attempts']} requests, {found['failures']} failures",
            str(found),
        )
        if is_tunnel:
            # A connection and a request are three packets at the least.
            self._check(
                passed >= 3 * CROSSING_REQUESTS,
                f"{passed} packets have left by that tunnel",
                f"{passed} packets",
            )

    def _reach_from_outside(self) -> None:
        self._title("A Service's own address from outside, over all nodes (ECMP)")
        client = self._environ.get("LAB_CLIENT_IP4") or self._environ["LAB_CLIENT_IP6"]
        options = ("--count", str(REQUESTS), "--rate", str(RATE))
        found = self._finish(self._load("client", self._vip, 80, *options), stop=False)
        self._check(
            found["failures"] == 0 and found["attempts"] == REQUESTS,
            f"outside client -> {endpoint(self._vip, 80)}: {found['attempts']} requests, "
            f"{found['failures']} failures, {found['rate']}/s",
            str(found["errors"]),
        )
        came: Counter[str] = Counter()
        for node in self._lab.nodes:
            for entry in parse_connections(self._inside(node, "cat", "/proc/net/ip_vs_conn")):
                is_it = entry.virtual_server == endpoint(self._vip, 80)
                came[node] += is_it and entry.client.rpartition(":")[0].strip("[]") == client
        shares = ", ".join(f"{node} {count}" for node, count in sorted(came.items()))
        self._check(
            all(came[node] for node in self._lab.nodes), f"the router used every node: {shares}"
        )

    def _delete(self) -> None:
        super()._delete()
        self._wait("the withdrawal", lambda: not self._ways(self._vip))
        self._check(not self._ways(self._vip), f"the router has no way to {self._vip} any more")

    # --- asking -----------------------------------------------------------------------------

    def _all(self) -> set[str]:
        return set(self._lab.nodes)

    def _family(self) -> str:
        return "-6" if ":" in self._vip else "-4"

    def _pod_cidr(self, node: str) -> str:
        return str(self._api.get("nodes", node)["spec"]["podCIDR"])

    def _routes(self, target: str) -> list[Object]:
        text = self._inside(target, "ip", "-j", self._family(), "route", "show")
        return [dict(each) for each in json.loads(text)]

    def _ways(self, destination: str) -> set[str]:
        """The nodes to which the router sends what goes there."""
        names = {self._node_address(node): node for node in self._lab.nodes}
        ways = [
            way.get("gateway") or way.get("via", {}).get("host")
            for route in self._routes("router")
            if route["dst"] == destination
            for way in route.get("nexthops") or [route]
        ]
        return {names.get(str(way), str(way)) for way in ways}

    def _packets(self, target: str, link: str) -> int:
        """How many a link has sent."""
        (found,) = json.loads(self._inside(target, "ip", "-j", "-s", "link", "show", "dev", link))
        return int(found["stats64"]["tx"]["packets"])

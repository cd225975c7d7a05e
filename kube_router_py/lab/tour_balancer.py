"""The guided tour's load balancer: an address of a pool, by ARP on the wire, by BGP elsewhere."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from kube_router_py.lab.errors import LabError
from kube_router_py.lab.state import LabState
from kube_router_py.lab.tour import RATE, REQUESTS, Object, Tour, endpoint
from kube_router_py.lab.tour_routes import RoutesTour

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "docs" / "examples" / "loadbalancer.yaml"
BALANCER = "website-balancer"
WIRE = "10.10.0."
NEAR = "[node1, node2]"  # where the example was written
POOLS = "/api/v1/namespaces/kube-system/configmaps"


class BalancerTour(RoutesTour):
    """The tour of routes, and then a Service that gets an address that can be told to others."""

    def _reach_from_outside(self) -> None:
        super()._reach_from_outside()
        if ":" not in self._vip:  # the pool is one of IPv4
            self._balance()

    def _balance(self) -> None:
        self._title("A load balancer: an address of a pool, by ARP on the nodes' wire and by BGP")
        print(f"    $ kubectl apply -f {EXAMPLE.relative_to(EXAMPLE.parents[2])}")
        near = {node for node in self._lab.nodes if self._node_address(node).startswith(WIRE)}
        text = EXAMPLE.read_text().replace(NEAR, f"[{', '.join(sorted(near))}]")
        pools, service = yaml.safe_load_all(text)
        self._api.call("POST", POOLS, pools, content_type="application/json")
        self._api.create("services", service)
        self._wait("an address for it", lambda: bool(self._ingress()))
        address = str(self._ingress()[0]["ip"])
        command, text = self._api.show(["services"], self._environ)
        print(f"    $ {command}")
        self._block(text)
        self._check(address.startswith(WIRE), f"{BALANCER} has {address}, of the pool")
        self._wait("its way from outside", lambda: self._ways(address) == near)
        self._check(
            self._ways(address) == near,
            f"the router sends it to the nodes of the pool alike: {', '.join(sorted(near))}",
        )
        self._wait("an answer by ARP", lambda: self._is_answered(address))
        for source in ("desk", "client"):
            self._ask(source, address)
        print(f"    $ kube-router-py lab exec desk -- ip neigh show to {address}")
        self._block(self._inside("desk", "ip", "neigh", "show", "to", address))
        node = self._node_of(address)
        self._check(node in near, f"{node} answers the desk for {address}")

    def _ask(self, source: str, address: str) -> None:
        options = ("--count", str(REQUESTS), "--rate", str(RATE))
        found = self._finish(self._load(source, address, 80, *options), stop=False)
        self._check(
            found["failures"] == 0 and found["attempts"] == REQUESTS,
            f"{source} -> {endpoint(address, 80)}: {found['attempts']} requests, "
            f"{found['failures']} failures, {found['rate']}/s",
            str(found["errors"]),
        )

    def _is_answered(self, address: str) -> bool:
        options = ("--count", "1", "--rate", "1", "--timeout", "5")
        found = self._finish(self._load("desk", address, 80, *options), stop=False)
        return bool(found["failures"] == 0)

    def _node_of(self, address: str) -> str:
        """The node whose hardware address the desk has learned."""
        text = self._inside("desk", "ip", "-j", "neigh", "show", "to", address)
        learned = {str(each.get("lladdr")) for each in json.loads(text)}
        for node in self._lab.nodes:
            (link,) = json.loads(self._inside(node, "ip", "-j", "link", "show", "dev", "eth0"))
            if link["address"] in learned:
                return node
        return f"nobody of {', '.join(self._lab.nodes)}"

    def _ingress(self) -> list[Object]:
        status = self._api.get("services", BALANCER)["status"]
        return list(status.get("loadBalancer", {}).get("ingress") or ())

    def _delete(self) -> None:
        if ":" not in self._vip:
            self._api.delete("services", BALANCER)
        super()._delete()


def tour(lab: LabState, environ: Mapping[str, str], began: float) -> int:
    """Run the tour that fits the lab; 0 when everything it said was true."""
    kind = Tour if environ["LAB_ROUTER"] == "none" else BalancerTour
    try:
        kind(lab, environ, began).run()
    except (LabError, subprocess.TimeoutExpired, KeyError, ValueError) as error:
        print(f"    FAILED: {error}", flush=True)
        return 1
    return 0

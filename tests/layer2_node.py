"""One node that announces by ARP and NDP, as a process of its own: all but the API server is real.

The argument is JSON: ``node``, ``nodes`` (name to addresses), ``addresses`` (of one Service each),
``grace_s``, ``key`` (hex). Lines of standard input: ``drain NAME`` and ``undrain NAME``. Whenever
the machine has held it up for long, it logs STALLED.
"""

import json
import logging
import signal
import sys
import threading
import time
from ipaddress import ip_address, ip_network

from kube_router_py.address_pools import AddressPools, AddressRange, Announcing, Pool
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import (
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from kube_router_py.kernel.neighbor_responder import NeighborResponder
from kube_router_py.loadbalancer.announcer import KINDS, PEERS, Announcer
from kube_router_py.loadbalancer.layer2_ports import Layer2Settings
from kube_router_py.loadbalancer.liveness import Liveness
from kube_router_py.loop import Loop
from kube_router_py.node_drain import DRAIN_ANNOTATION

PORT = 20246
STALLED = "was held up"
_STALLED_S = 1.0


def node(name: str, addresses: list[str], *, is_drained: bool = False) -> Node:
    return Node(
        metadata=ObjectMeta(
            name=name, annotations={DRAIN_ANNOTATION: "true"} if is_drained else None
        ),
        status=NodeStatus(tuple(NodeAddress("InternalIP", each) for each in addresses)),
    )


def service(number: int, address: str) -> Service:
    return Service(
        metadata=ObjectMeta(name=f"s{number}", namespace="default"),
        spec=ServiceSpec(
            type="LoadBalancer", cluster_ip="10.96.0.1", ports=(ServicePort(port=80),)
        ),
        status=ServiceStatus(LoadBalancerStatus((LoadBalancerIngress(ip=address),))),
    )


def pools(addresses: list[str]) -> AddressPools:
    networks = [ip_network(each) for each in addresses]
    ranges = tuple(AddressRange(each[0], each[-1]) for each in networks)
    return AddressPools((Pool("default", ranges, announcing=Announcing(layer2=True)),))


def tell_stalls() -> None:
    woken = time.monotonic()
    while True:
        time.sleep(0.1)
        before, woken = woken, time.monotonic()
        if woken - before > _STALLED_S:
            logging.warning("%s for_s=%.1f", STALLED, woken - before)


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    threading.Thread(target=tell_stalls, daemon=True).start()
    given = json.loads(sys.argv[1])
    name, nodes = given["node"], given["nodes"]
    cache = Cache(KINDS)
    for each, addresses in nodes.items():
        cache.put(Node, node(each, addresses))
    for number, address in enumerate(given["addresses"]):
        cache.put(Service, service(number, address))
    found = pools(given["addresses"])
    own = [ip_address(each) for each in nodes[name]]
    liveness = Liveness(name, PORT, given["grace_s"])
    announcer = Announcer(
        cache,
        Layer2Settings(name, PORT),
        lambda: found,
        liveness,
        None,
        lambda on_claim: NeighborResponder(on_claim, lambda: own),
    )
    loop = Loop(announcer, ready=lambda: True, resync_interval_s=300.0, min_interval_s=0.02)
    announcer.subscribe(cache, loop)
    liveness.on_change = lambda: loop.mark((PEERS,))
    liveness.put_key(bytes.fromhex(given["key"]))
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    liveness.start()
    loop.start()

    def obey() -> None:
        for line in sys.stdin:
            what, _, whom = line.strip().partition(" ")
            cache.put(Node, node(whom, nodes[whom], is_drained=what == "drain"))

    threading.Thread(target=obey, daemon=True).start()
    while not ended.wait(0.2):
        pass
    liveness.say_restart()
    loop.stop(10.0)
    liveness.stop(10.0)


if __name__ == "__main__":
    main()

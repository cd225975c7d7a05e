"""An agent that does nothing but allocate, in a process of its own: to be killed or frozen.

Arguments: a kubeconfig, a name, and how many times as patient as others it is. Ends when its
standard input does.
"""

import logging
import sys

from kube_router_py.address_pool_config import pool_settings
from kube_router_py.allocation_part import AllocationPart
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import connect
from kube_router_py.cluster.reflector import Reflector
from kube_router_py.loadbalancer.controller import KINDS
from kube_router_py.loadbalancer.election import Timing
from kube_router_py.options import parse
from kube_router_py.pool_book import Past, PoolBook

POOLS = "[{name: more, addresses: [10.30.0.0/24], autoAssign: false}]"


def main(kubeconfig: str, name: str, patience: str) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {name} %(message)s"
    )
    ranges = "10.20.0.0/21,2001:db8:20::/112"
    flags = (f"--kubeconfig={kubeconfig}", f"--loadbalancer-ip-range={ranges}", "--enable-ipv6")
    options = parse([*flags, "--loadbalancer-sync-period=5s"], {})
    client, cache = connect(options), Cache(KINDS)
    book = PoolBook(pool_settings(options, "kube-system"))
    part = AllocationPart(
        *(options, cache, client, f"node-of-{name}", "kube-system", name, book),
        *(lambda turn: None, lambda loop, reason: None),
        # Shorter than in a cluster, with the same proportions.
        timing=Timing(
            lease_s=8 * int(patience),
            renew_s=5.5 * int(patience),
            retry_s=0.5,
            request_s=2.0 * int(patience),
        ),
    )
    reflectors = [Reflector(client, cache, kind) for kind in KINDS]
    part.start()
    for reflector in reflectors:
        reflector.start()
    part.loop.start()
    book.put_past(Past())
    book.put_config(POOLS)
    sys.stdin.read()
    part.before_loops_stop()
    part.loop.stop(10)
    for reflector in reflectors:
        reflector.stop(5)
    part.stop()


main(*sys.argv[1:])

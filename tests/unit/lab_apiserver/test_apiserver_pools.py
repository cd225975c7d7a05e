"""The ConfigMap of address pools, followed on an API server: selectors, watches, Events."""

from collections.abc import Callable
from typing import Any

from kube_router_py.address_pool_config import CONFIG_MAP, PoolSettings
from kube_router_py.cluster.client import connect
from kube_router_py.options import parse
from kube_router_py.pool_book import PoolBook
from kube_router_py.pool_source import ACCEPTED_ANNOTATION, ACCEPTED_LEASE, PoolSource

GOOD = "- {name: first, addresses: [192.0.2.0/24]}\n"
BAD = "- {name: first, addresses: [192.0.2.0/24, nowhere]}\n"


def config(name: str, text: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": {"pools": text}}


def test_pools_follow_the_config_map(
    cluster: Any, until: Callable[[Callable[[], Any], str], Any]
) -> None:
    def call(verb: str, *args: Any, **kwargs: Any) -> Any:
        return cluster.call(getattr(cluster.store, verb), *args, **kwargs)

    namespace = {"namespace": "kube-system"}
    call("create", "configmaps", config("other", "- {name: o, addresses: [1.2.3.4]}"), **namespace)
    call("create", "configmaps", config(CONFIG_MAP, BAD), **namespace)
    kept = {"name": ACCEPTED_LEASE, "annotations": {ACCEPTED_ANNOTATION: GOOD}}
    call("create", "leases", {"metadata": kept}, **namespace)
    client = connect(parse([f"--kubeconfig={cluster.kubeconfig}"], {}), {})
    book = PoolBook(PoolSettings())
    source = PoolSource(book, client, "node1", event_spacing_s=0.0)
    source.start()
    try:
        until(lambda: book.is_known, "the first list")
        assert [pool.name for pool in book.pools.pools] == ["first"]
        assert book.accepted_text == GOOD
        until(lambda: len(call("list", "events", "kube-system")) == 2, "the Events")
        told = [event["message"] for event in call("list", "events", "kube-system")]
        assert any("'nowhere' is no range of addresses" in message for message in told)
        call("patch", "configmaps", CONFIG_MAP, {"data": {"pools": ""}}, **namespace)
        until(lambda: book.accepted_text == "", "the edit")
        assert (book.pools.pools, book.problems) == ((), ())
    finally:
        source.stop(60.0)
        client.close()

"""Indexes of the cache: from something an object says to the keys of the objects that say it."""

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

from kube_router_py.cluster.objects import EndpointSlice, Pod, Service
from kube_router_py.services import service_key_of


class Index:
    """Maps each term that ``terms_of`` finds in an object to the keys of such objects.

    Most terms have one object (a pod IP), some thousands (a namespace): a bucket is the key itself
    until there are two, then a set. Not thread-safe; the cache holds its lock around every call.
    """

    def __init__(self, terms_of: Callable[[Any], Iterable[str]]) -> None:
        self._terms_of = terms_of
        self._buckets: dict[str, str | set[str]] = {}

    def update(self, key: str, old: Any | None, new: Any | None) -> None:
        """Take note that the object under ``key`` was ``old`` and is ``new`` (None: absent)."""
        before = frozenset(self._terms_of(old)) if old is not None else frozenset()
        after = frozenset(self._terms_of(new)) if new is not None else frozenset()
        for term in before - after:
            self._discard(term, key)
        for term in after - before:
            self._add(term, key)

    def keys(self, term: str) -> frozenset[str]:
        bucket = self._buckets.get(term)
        if bucket is None:
            return frozenset()
        return frozenset((bucket,)) if isinstance(bucket, str) else frozenset(bucket)

    def __len__(self) -> int:
        return len(self._buckets)

    def _add(self, term: str, key: str) -> None:
        bucket = self._buckets.get(term)
        if bucket is None:
            self._buckets[term] = key
        elif isinstance(bucket, set):
            bucket.add(key)
        elif bucket != key:
            self._buckets[term] = {bucket, key}

    def _discard(self, term: str, key: str) -> None:
        bucket = self._buckets.get(term)
        if isinstance(bucket, set):
            bucket.discard(key)
            if not bucket:
                del self._buckets[term]
        elif bucket == key:
            del self._buckets[term]


def canonical_ip(text: str) -> str | None:
    """An address in its one canonical spelling (RFC 5952), or None if it is no address."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def service_of_slice(slice_: EndpointSlice) -> Iterable[str]:
    key = service_key_of(slice_)
    return (key,) if key else ()


def vips_of_service(service: Service) -> Iterable[str]:
    """Every address at which clients may reach the Service: cluster, external, load balancer."""
    spec = service.spec
    found = [spec.cluster_ip or "", *(spec.cluster_ips or ()), *(spec.external_ips or ())]
    if service.status and service.status.load_balancer:
        found += (entry.ip or "" for entry in service.status.load_balancer.ingress or ())
    return [ip for ip in map(canonical_ip, found) if ip]


def ips_of_pod(pod: Pod) -> Iterable[str]:
    if not pod.status:
        return ()
    found = [pod.status.pod_ip or "", *(entry.ip for entry in pod.status.pod_ips or ())]
    # IPv4 has one spelling in Kubernetes; only IPv6 is worth the parse, for 50,000 pods.
    return [ip for ip in (canonical_ip(x) if ":" in x else x for x in found) if ip]


def node_of_pod(pod: Pod) -> Iterable[str]:
    return (pod.spec.node_name,) if pod.spec.node_name else ()


def namespace_of_pod(pod: Pod) -> Iterable[str]:
    return (pod.metadata.namespace,)

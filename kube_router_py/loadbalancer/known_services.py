"""Which version of each Service counts: the newest of those listed, written and watched. Pure.

A cache lags behind what its own process writes and lists. Who takes it for the truth forgets for a
moment which addresses are in use. So what was listed when the allocation began, and what came back
from each write, counts until the cache has something newer; and a Service that the cache does not
have (yet) exists if the cache has not come as far as the version that is known of it.
"""

from collections.abc import Iterable, KeysView

from kube_router_py.cluster.objects import Service
from kube_router_py.cluster.revision import is_not_newer, is_older


class KnownServices:
    """Services by key, ``namespace/name``. For one thread."""

    def __init__(self) -> None:
        self._newest: dict[str, Service] = {}
        self._gone: dict[str, str] = {}  # the last version of Services that a write did not find
        self._listed = ""
        self.latest = ""
        """The newest version of all that was listed, written and seen."""

    def __contains__(self, key: str) -> bool:
        return key in self._newest

    def __getitem__(self, key: str) -> Service:
        return self._newest[key]

    def keys(self) -> KeysView[str]:
        return self._newest.keys()

    def replace(self, services: Iterable[Service], revision: str) -> None:
        """All Services as the API server has them at this moment."""
        self._newest = {each.metadata.key: each for each in services}
        self._gone.clear()
        self._listed = self.latest = revision

    def put(self, service: Service) -> None:
        """A Service as the API server has just answered."""
        known = self._newest.get(service.metadata.key)
        if known is None or not is_older(_version(service), _version(known)):
            self._keep(service)

    def drop(self, key: str) -> None:
        """The API server has just said that there is no such Service."""
        if (known := self._newest.pop(key, None)) is not None:
            self._gone[key] = _version(known)

    def see(self, key: str, cached: Service | None, reached: str) -> Service | None:
        """What counts, now that the cache has this; ``reached`` is how far the cache has come."""
        known = self._newest.get(key)
        if cached is not None:
            floor = _version(known) if known is not None else self._gone.get(key, self._listed)
            is_late = is_older if known is not None else is_not_newer
            if is_late(_version(cached), floor):
                return known
            self._keep(cached)
            return cached
        if known is not None and is_older(reached, _version(known)):
            return known
        self._newest.pop(key, None)
        self._gone.pop(key, None)
        return None

    def _keep(self, service: Service) -> None:
        self._newest[service.metadata.key] = service
        self._gone.pop(service.metadata.key, None)
        if not is_older(_version(service), self.latest):
            self.latest = _version(service)


def _version(service: Service) -> str:
    return service.metadata.resource_version

"""What the lab's controllers, scheduler and kubelets need of an API, wherever it is kept.

``store.Store`` is the lab's own server's memory; ``remote.RemoteStore`` a client of a real server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .status import Object
from .storage import Event

Objects = list[Object]  # ObjectStore.list hides the builtin inside the class


class ObjectStore(Protocol):
    """Objects by resource name; every failure is a StatusError. For the asyncio loop only.

    What a write returned is what the next read finds, and subscribers have been told of it.
    """

    @property
    def revision(self) -> int:
        """The revision of the newest write, anybody's."""

    def find(self, resource: str, name: str, namespace: str = "") -> Object | None:
        """The object, or None."""

    def get(self, resource: str, name: str, namespace: str = "") -> Object:
        """The object; 404 when it does not exist."""
        ...

    def list(self, resource: str, namespace: str | None = None) -> Objects:
        """Objects (of every namespace for None) sorted by namespace and name."""
        ...

    def subscribe(self, callback: Callable[[Event], None], *resources: str) -> Callable[[], None]:
        """Call back for each Event from now on; returns the function to stop."""
        ...

    def create(self, resource: str, obj: Object, *, namespace: str = "") -> Object:
        """Create; 409 when the name is taken."""
        ...

    def update(
        self, resource: str, obj: Object, *, namespace: str = "", subresource: str = ""
    ) -> Object:
        """Replace the object (409 when its resourceVersion is not current), or its status."""
        ...

    def patch(
        self,
        resource: str,
        name: str,
        patch: Any,
        *,
        namespace: str = "",
        form: str = "merge",
        subresource: str = "",
    ) -> Object:
        """Patch; ``form``: json, merge or strategic."""
        ...

    def apply(self, obj: Object) -> Object:
        """Create the object or strategically merge it into the existing one."""
        ...

    def bind(self, pod: str, namespace: str, node: str) -> Object:
        """Give a pod its node."""
        ...

    def delete(
        self,
        resource: str,
        name: str,
        namespace: str = "",
        *,
        grace_period_s: int | None = None,
        uid: str = "",
    ) -> tuple[Object, bool]:
        """Delete; returns the last state and whether it is gone already."""
        ...

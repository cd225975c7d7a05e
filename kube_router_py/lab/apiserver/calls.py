"""Calls: one request for objects, turned into a call of the store."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from . import reading, views
from .bodies import PATCH_FORMS, decode, decode_object
from .patches import patch
from .status import Object, bad_request, unsupported_media_type
from .store import Store
from .targets import Target


class Call:
    """One request for objects, with what its query and headers say."""

    def __init__(self, store: Store, target: Target, request: web.BaseRequest) -> None:
        query = request.query
        self._store = store
        self._target = target
        self._query = query
        self._type = request.headers.get("Content-Type", "")
        agent = request.headers.get("User-Agent", "unknown").partition("/")[0]
        self._how: dict[str, Any] = {
            "namespace": target.namespace,
            "manager": query.get("fieldManager") or agent,
            "dry_run": query.get("dryRun") == "All",
            "lenient": "off"
            in (query.get("labValidation"), request.headers.get("X-Lab-Validation")),
        }

    def get(self) -> Object:
        """The object, or its Scale."""
        target = self._target
        obj = self._store.get(target.resource.name, target.name, target.namespace)
        return views.scale_of(obj) if target.subresource == "scale" else obj

    def write(self, verb: str, body: bytes) -> tuple[Object, bool]:
        """Create, update or patch; returns the object and whether it is new."""
        target, name = self._target, self._target.resource.name
        if target.subresource == "scale":
            return self._scale(verb, body), False
        if verb == "patch":
            return self._patch(body)
        obj = views.store_form(target.resource, decode_object(body, self._type))
        if verb == "create":
            return self._store.create(name, obj, **self._how), True
        metadata = obj.get("metadata")
        if not isinstance(metadata, dict) or metadata.get("name") != target.name:
            raise bad_request(
                "the name of the object does not match the name on the URL "
                f"({(metadata or {}).get('name', '')!r}, {target.name!r})"
            )
        how = {**self._how, "subresource": target.subresource}
        return self._store.update(name, obj, **how), False

    def _form(self) -> str:
        form = PATCH_FORMS.get(self._type.partition(";")[0].strip())
        if form is None:
            known = ", ".join(PATCH_FORMS)
            raise unsupported_media_type(self._type, f"a PATCH is one of {known}")
        return form

    def _patch(self, body: bytes) -> tuple[Object, bool]:
        target, form = self._target, self._form()
        change = decode(body, self._type)
        name = target.resource.name
        how = {**self._how, "subresource": target.subresource}
        if form != "apply":
            return self._store.patch(name, target.name, change, form=form, **how), False
        if not self._query.get("fieldManager"):
            raise bad_request(
                'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is '
                "required for apply patch"
            )
        if not isinstance(change, dict):
            raise bad_request("the body is not an object")
        force = self._query.get("force") in ("true", "1")
        return self._store.server_side_apply(name, target.name, change, force=force, **how)

    def _scale(self, verb: str, body: bytes) -> Object:
        target, name = self._target, self._target.resource.name
        obj = self._store.get(name, target.name, target.namespace)
        if verb == "patch":
            form = self._form()
            if form == "apply":
                raise unsupported_media_type(self._type, "a Scale takes JSON patches only")
            scale = patch(form, views.scale_of(obj), decode(body, self._type), "Scale")
        else:
            scale = decode_object(body, self._type)
        changed = views.with_scale(obj, scale)
        return views.scale_of(self._store.update(name, changed, **self._how))

    def delete(self, body: bytes) -> tuple[Object, bool]:
        """Delete one object; its last state and whether it is gone already."""
        target = self._target
        return self._store.delete(
            target.resource.name, target.name, target.namespace, **self._options(body)
        )

    def delete_collection(self, body: bytes) -> list[Object]:
        """Delete what the selectors match; returns what was there."""
        target = self._target
        match = reading.match_of(self._query, target)
        return self._store.delete_collection(
            target.resource.name, target.namespace or None, match, **self._options(body)
        )

    def _options(self, body: bytes) -> dict[str, Any]:
        options = decode_object(body, self._type) if body.strip() else {}
        grace = options.get("gracePeriodSeconds", self._query.get("gracePeriodSeconds"))
        conditions = options.get("preconditions") or {}
        propagation = options.get("propagationPolicy") or self._query.get("propagationPolicy")
        orphan = options.get("orphanDependents") is True
        return {
            "grace_period_s": None if grace is None else int(grace),
            "propagation": "Orphan" if orphan else propagation or "Background",
            "uid": conditions.get("uid") or "",
            "revision": conditions.get("resourceVersion") or "",
            "dry_run": self._how["dry_run"] or bool(options.get("dryRun")),
        }


def table_rows(request: web.BaseRequest) -> str:
    """What the rows of a Table carry, or "" when the client does not want a Table."""
    accept = request.headers.get("Accept", "")
    if "as=Table" not in accept or "v=v1;" not in accept + ";":
        return ""
    return request.query.get("includeObject") or "Metadata"

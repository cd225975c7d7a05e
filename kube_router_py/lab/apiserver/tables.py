"""Tables: lists, objects and watch events as ``kubectl get`` prints them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .resources import Resource
from .status import Object


def _cell(function: Any, obj: Object, now: float) -> Any:
    try:
        return function(obj, now)
    except (AttributeError, KeyError, TypeError, ValueError):
        return "<invalid>"  # a malformed object must not hide the others


def render(
    resource: Resource,
    objects: Iterable[Object],
    metadata: Object,
    now: float,
    *,
    include: str = "Metadata",
    with_columns: bool = True,
) -> Object:
    """A Table; ``include``: what a row carries of its object, Object, Metadata or None.

    ``metadata`` is the ListMeta (resourceVersion, continue); ``now`` in seconds since the epoch.
    """
    rows = []
    for obj in objects:
        cells = [_cell(column.cell, obj, now) for column in resource.columns]
        row: Object = {"cells": cells}
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            row["object"] = {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": obj["metadata"],
            }
        rows.append(row)
    definitions = [
        {
            "name": column.name,
            "type": column.type,
            "format": "name" if column.name == "Name" else "",
            "description": "",
            "priority": column.priority,
        }
        for column in resource.columns
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions if with_columns else None,
        "rows": rows,
    }

"""Check: collects what is wrong with an object, field by field, in the API's words."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from typing import Any

from .status import Cause, Object

_QUALIFIED_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PORT_NAME = re.compile(r"(?=[a-z0-9-]*[a-z])(?!.*--)[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def _show(value: Any) -> str:
    return json.dumps(value)


class Check:
    """Collects causes; each method adds one when the value does not fit."""

    def __init__(self) -> None:
        self.causes: list[Cause] = []

    def invalid(self, field: str, value: Any, why: str) -> None:
        text = f"Invalid value: {_show(value)}: {why}"
        self.causes.append(Cause("FieldValueInvalid", text, field))

    def required(self, field: str, why: str = "") -> None:
        text = f"Required value: {why}" if why else "Required value"
        self.causes.append(Cause("FieldValueRequired", text, field))

    def duplicate(self, field: str, value: Any) -> None:
        text = f"Duplicate value: {_show(value)}"
        self.causes.append(Cause("FieldValueDuplicate", text, field))

    def forbidden(self, field: str, why: str) -> None:
        self.causes.append(Cause("FieldValueForbidden", f"Forbidden: {why}", field))

    def one_of(self, field: str, value: Any, allowed: Iterable[str]) -> None:
        allowed = tuple(allowed)
        if value not in allowed:
            names = ", ".join(f'"{name}"' for name in allowed)
            text = f"Unsupported value: {_show(value)}: supported values: {names}"
            self.causes.append(Cause("FieldValueNotSupported", text, field))

    def immutable(self, field: str, old: Any, new: Any) -> None:
        if old != new:
            self.invalid(field, new, "field is immutable")

    def port(self, field: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
            self.invalid(field, value, "must be between 1 and 65535, inclusive")

    def named_port(self, field: str, value: Any) -> None:
        if isinstance(value, str):
            if len(value) > 15 or not _PORT_NAME.fullmatch(value):
                self.invalid(
                    field,
                    value,
                    "must contain only alpha-numeric characters (a-z, 0-9), hyphens (-), at least "
                    "one letter, no adjacent hyphens, and no more than 15 characters",
                )
        else:
            self.port(field, value)

    def address(self, field: str, value: Any) -> None:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            self.invalid(
                field, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            )

    def cidr(self, field: str, value: Any) -> None:
        try:
            if "/" not in str(value):
                raise ValueError
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            self.invalid(
                field, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
            )

    def objects(self, field: str, value: Any) -> list[tuple[str, Object]]:
        """The items of a list with their field paths; what is no list or object is a cause."""
        if value is None:
            return []
        if not isinstance(value, list):
            self.invalid(field, value, "must be a list")
            return []
        found = []
        for index, item in enumerate(value):
            if isinstance(item, dict):
                found.append((f"{field}[{index}]", item))
            else:
                self.invalid(f"{field}[{index}]", item, "must be an object")
        return found

    def object(self, field: str, value: Any, *, required: bool = False) -> Object:
        if isinstance(value, dict):
            return value
        if value is not None:
            self.invalid(field, value, "must be an object")
        elif required:
            self.required(field)
        return {}

    def labels(self, field: str, value: Any) -> None:
        for key, text in self.object(field, value).items():
            prefix, slash, name = key.rpartition("/")
            if not _QUALIFIED_NAME.fullmatch(name) or len(name) > 63 or (slash and not prefix):
                self.invalid(
                    field,
                    key,
                    "name part must consist of alphanumeric characters, '-', '_' or '.', and must "
                    "start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  "
                    "or '123-abc', regex used for validation is "
                    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                )
            good = isinstance(text, str) and (not text or _QUALIFIED_NAME.fullmatch(text))
            if not good or len(text) > 63:
                self.invalid(
                    field,
                    text,
                    "a valid label must be an empty string or consist of alphanumeric characters, "
                    "'-', '_' or '.', and must start and end with an alphanumeric character (e.g. "
                    "'MyValue',  or 'my_value',  or '12345', regex used for validation is "
                    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
                )

    def selector(self, field: str, value: Any) -> None:
        selector = self.object(field, value)
        self.labels(f"{field}.matchLabels", selector.get("matchLabels"))
        expressions = self.objects(f"{field}.matchExpressions", selector.get("matchExpressions"))
        for where, expression in expressions:
            operator = expression.get("operator")
            values = expression.get("values")
            if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
                self.invalid(f"{where}.operator", operator, "not a valid selector operator")
            elif operator in ("In", "NotIn") and not values:
                self.required(
                    f"{where}.values", "must be specified when `operator` is 'In' or 'NotIn'"
                )
            elif operator in ("Exists", "DoesNotExist") and values:
                self.forbidden(
                    f"{where}.values",
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                )

"""Status: the API's answers that are no objects, with the words a real API server uses.

Source: Kubernetes API conventions, "Response Status Kind", and apimachinery's error texts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

Object = dict[str, Any]


class Cause(NamedTuple):
    """One wrong field: ``reason`` as in FieldValueInvalid, ``message`` without the field."""

    reason: str
    message: str
    field: str


class StatusError(Exception):
    """An API call that failed; ``body()`` is the Status object to answer with."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details or {}

    def body(self) -> Object:
        """The Status object, as JSON-like data."""
        status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details:
            status["details"] = self.details
        status["code"] = self.code
        return status


def success(details: Object | None = None) -> Object:
    """The Status of a call that worked and has no object to return (a deletion)."""
    status: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details:
        status["details"] = details
    return status


def _details(group_resource: str, name: str) -> Object:
    plural, _, group = group_resource.partition(".")
    details: Object = {"name": name} if name else {}
    if group:
        details["group"] = group
    details["kind"] = plural
    return details


def not_found(group_resource: str, name: str) -> StatusError:
    return StatusError(
        404, "NotFound", f'{group_resource} "{name}" not found', _details(group_resource, name)
    )


def no_such_path() -> StatusError:
    return StatusError(404, "NotFound", "the server could not find the requested resource")


def already_exists(group_resource: str, name: str) -> StatusError:
    message = f'{group_resource} "{name}" already exists'
    return StatusError(409, "AlreadyExists", message, _details(group_resource, name))


def conflict(group_resource: str, name: str, why: str = "") -> StatusError:
    why = why or (
        "the object has been modified; please apply your changes to the latest version and "
        "try again"
    )
    message = f'Operation cannot be fulfilled on {group_resource} "{name}": {why}'
    return StatusError(409, "Conflict", message, _details(group_resource, name))


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> StatusError:
    """422 with every cause; ``kind`` as in ``Deployment``, ``group`` empty for core."""
    texts = [f"{cause.field}: {cause.message}" for cause in causes]
    joined = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    qualified = f"{kind}.{group}" if group else kind
    details: Object = {"name": name, "kind": kind}
    if group:
        details["group"] = group
    details["causes"] = [
        {"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in causes
    ]
    return StatusError(422, "Invalid", f'{qualified} "{name}" is invalid: {joined}', details)


def forbidden(group_resource: str, name: str, why: str) -> StatusError:
    message = f"{group_resource} is forbidden: {why}"
    if name:
        message = f'{group_resource} "{name}" is forbidden: {why}'
    return StatusError(403, "Forbidden", message, _details(group_resource, name))


def unauthorized() -> StatusError:
    return StatusError(401, "Unauthorized", "Unauthorized")


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def expired(message: str) -> StatusError:
    """410: the revision asked for was compacted; list again."""
    return StatusError(410, "Expired", message)


def method_not_allowed() -> StatusError:
    return StatusError(
        405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
    )


def too_large_revision(asked: int, current: int) -> StatusError:
    """504: the caller has seen a newer revision than this store holds; try again."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return StatusError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {asked}, current: {current}",
        {"causes": [cause], "retryAfterSeconds": 1},
    )


def unsupported_media_type(content_type: str, remedy: str) -> StatusError:
    return StatusError(
        415,
        "UnsupportedMediaType",
        f"the body of the request was in an unknown format ({content_type}): {remedy}",
    )

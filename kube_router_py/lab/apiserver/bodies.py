"""Request bodies: JSON, YAML and a little protobuf; the rest is refused with the remedy."""

from __future__ import annotations

from typing import Any

import msgspec

from .status import bad_request, unsupported_media_type

_REMEDY = (
    "the lab's API server wants JSON or YAML; add --dry-run=client -o yaml and pipe the "
    "output into kubectl apply -f -"
)
_YAML_TYPES = ("application/yaml", "application/apply-patch+yaml", "text/yaml")
PATCH_FORMS = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}


def _yaml(body: bytes) -> Any:
    import yaml  # slow to import, and kubectl itself sends JSON

    class Loader(yaml.SafeLoader):
        """SafeLoader whose timestamps stay text, as in JSON."""

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    try:
        return yaml.load(body, Loader=Loader)
    except yaml.YAMLError as error:
        raise bad_request(f"error parsing the body as YAML: {error}") from error


def decode(body: bytes, content_type: str) -> Any:
    """The body as JSON-like data; 400 for broken syntax, 415 for what cannot be read."""
    media = content_type.partition(";")[0].strip().lower()
    if media.endswith("protobuf") or body.startswith(b"k8s\x00"):
        from . import protobuf  # few requests need it

        try:
            return protobuf.decode(body)
        except protobuf.UnknownField as error:
            why = f"{error} is not understood in protobuf; {_REMEDY}"
            raise unsupported_media_type(media or "protobuf", why) from error
    if media and media not in _YAML_TYPES and "json" not in media and media != "*/*":
        raise unsupported_media_type(media, _REMEDY)
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        if media in _YAML_TYPES:
            return _yaml(body)
        raise bad_request(f"error decoding the body as JSON: {error}") from error


def decode_object(body: bytes, content_type: str) -> dict[str, Any]:
    """The body as one object."""
    decoded = decode(body, content_type)
    if not isinstance(decoded, dict):
        raise bad_request("the body is not an object")
    return decoded

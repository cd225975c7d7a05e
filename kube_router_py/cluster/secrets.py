"""One entry of a Secret, asked for when it is needed: Secrets are neither listed nor watched, so
that permission to read the few that are named is enough."""

import base64
import binascii

from msgspec import DecodeError, json

from kube_router_py.cluster.client import Client, RefusedError
from kube_router_py.cluster.objects import Secret
from kube_router_py.errors import ApiError


def read_entry(client: Client, namespace: str, name: str, key: str) -> bytes | None:
    """What a Secret holds under a key; None where there is no such Secret, or no such key in it.

    Raises ApiError.
    """
    path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
    try:
        secret = json.decode(client.get(path), type=Secret)
    except RefusedError as error:
        if error.status == 404:
            return None
        if error.status == 403:
            raise ApiError(
                f"{error}; name the Secret in the Role that lets the agent read Secrets", 403
            ) from error
        raise
    except DecodeError as error:
        raise ApiError(f"Secret {namespace}/{name} cannot be read: {error}") from error
    text = (secret.data or {}).get(key)
    try:
        return None if text is None else base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ApiError(f"Secret {namespace}/{name} key {key}: no base64") from error

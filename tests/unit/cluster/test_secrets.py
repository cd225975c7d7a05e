"""One entry of a Secret."""

import base64
import json
from typing import Any

import pytest

from kube_router_py.cluster.client import RefusedError
from kube_router_py.cluster.secrets import read_entry
from kube_router_py.errors import ApiError


class FakeClient:
    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer
        self.paths: list[str] = []

    def get(self, path: str) -> bytes:
        self.paths.append(path)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def read(answer: Any, key: str = "password") -> bytes | None:
    client = FakeClient(answer)
    found = read_entry(client, "kube-system", "bgp", key)  # type: ignore[arg-type]
    assert client.paths == ["/api/v1/namespaces/kube-system/secrets/bgp"]
    return found


def secret(**data: str) -> bytes:
    return json.dumps({"kind": "Secret", "data": data}).encode()


def test_an_entry_is_decoded() -> None:
    text = base64.b64encode(b"k8s!\n").decode()
    assert read(secret(password=text, other="!")) == b"k8s!\n"


def test_what_is_not_there_is_none() -> None:
    assert read(secret(other="aGk=")) is None
    assert read(b'{"kind": "Secret"}') is None
    assert read(RefusedError("not found", 404, "NotFound", 0)) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (RefusedError("forbidden", 403, "Forbidden", 0), "name the Secret in the Role"),
        (RefusedError("too many requests", 429, "", 1), "too many requests"),
        (secret(password="hush!"), "Secret kube-system/bgp key password: no base64"),
        (b"[]", "Secret kube-system/bgp cannot be read"),
    ],
)
def test_what_cannot_be_read_is_an_error_without_its_content(answer: Any, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        read(answer)
    assert "hush" not in str(caught.value)

"""Passwords: what FRR takes as one, and that no text ever shows one."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.routing.model import PASSWORD_MAX
from kube_router_py.routing.passwords import (
    SecretRef,
    checked_password,
    decode_password,
    secret_password,
    split_list,
)

# Spaces of all sorts, and what is invisible or moves the cursor.
WRONG = [" ", "\n", "\r", "\t", "\0", "\x03", "\x1b", "\x7f", "\x85", "\xa0", "\u2003", "\u2028"]
WRONG += ["\u3000", "\u200b", "\ufeff", "\xad", "\u202e"]


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "password", ["", "secret", "k8s!md5#1", '!#"$|?\\', "pässwörd", "x" * PASSWORD_MAX, "ö" * 40]
)
def test_passwords_that_frr_takes(password: str) -> None:
    assert decode_password(encoded(password)) == password
    assert checked_password(password.encode()) == password


@pytest.mark.parametrize("character", WRONG)
@pytest.mark.parametrize("frame", ["{}x", "{}hidden", "hid{}den", "hidden{}{}"])
def test_passwords_are_one_printable_word(frame: str, character: str) -> None:
    with pytest.raises(ValueError, match="has a space or an unprintable character") as told:
        decode_password(encoded(frame.replace("{}", character)))
    assert "hid" not in str(told.value)


@pytest.mark.parametrize("password", ["x" * (PASSWORD_MAX + 1), "ö" * 41])
def test_passwords_have_at_most_80_bytes(password: str) -> None:
    with pytest.raises(ValueError, match="is longer than 80 bytes") as told:
        decode_password(encoded(password))
    assert password not in str(told.value)


@pytest.mark.parametrize("text", ["hidden!", "c2VjcmV", "c2Vj cmV0", "ü", "=", "c2VjcmV0\n"])
def test_passwords_are_given_in_base64(text: str) -> None:
    with pytest.raises(ValueError, match="is not base64; encode") as told:
        decode_password(text)
    assert text not in str(told.value)


def test_passwords_are_utf_8() -> None:
    with pytest.raises(ValueError, match="is not UTF-8"):
        decode_password(base64.b64encode(b"\xff\xfe").decode())


@pytest.mark.parametrize(
    ("content", "password"),
    [(b"secret", "secret"), (b"secret\n", "secret"), (b"secret\r\n", "secret")],
)
def test_a_line_break_at_the_end_of_a_secret_is_not_part_of_it(
    content: bytes, password: str
) -> None:
    assert secret_password(content) == password
    assert decode_password(base64.b64encode(content).decode()) == password


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_an_empty_secret_is_no_password(content: bytes) -> None:
    with pytest.raises(ValueError, match="is empty"):
        secret_password(content)


@pytest.mark.parametrize("content", [b"a\nb", b"a\n\n", b"\nb", b"a\0", b"\xff"])
def test_a_secret_is_one_word_too(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"has a space|is not UTF-8"):
        secret_password(content)


@pytest.mark.parametrize(
    ("text", "items"),
    [("", ()), (" \n", ()), ("a", ("a",)), ("a,,b\n", ("a", "", "b")), (" a , b ", ("a", "b"))],
)
def test_lists_of_passwords(text: str, items: tuple[str, ...]) -> None:
    assert split_list(text) == items


def test_a_file_that_is_no_list_of_passwords() -> None:
    with pytest.raises(ValueError, match="is too long"):
        split_list("," * 70000)


@given(st.binary(max_size=90))
def test_whatever_comes_is_one_word_of_frr_or_refused(content: bytes) -> None:
    try:
        password = checked_password(content)
    except ValueError:
        return
    assert password.encode() == content.removesuffix(b"\n").removesuffix(b"\r")
    assert len(password.encode()) <= PASSWORD_MAX
    assert password.isprintable()
    assert len(password.split()) == bool(password)


def test_references_are_shown_with_their_key() -> None:
    assert str(SecretRef("bgp", "router-1")) == "bgp/router-1"

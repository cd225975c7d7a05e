"""Bundles: whole or not at all, bounded, and without secrets wherever these were put."""

import base64
import json
import os
import stat
import subprocess
import sys
import tarfile

import pytest

from kube_router_py.doctor import bundle
from kube_router_py.doctor.masks import environment, masked
from kube_router_py.doctor.place import Place
from kube_router_py.errors import ConfigurationError
from kube_router_py.options import given_text, parse

JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJlLXBsYW50ZWQ"
PASSWORD = "bgp-pass-planted"
ENCODED = base64.b64encode(PASSWORD.encode()).decode()
IN_FILE = "file-pass-planted"
VARIABLE = "variable-planted-value"
FREE = "free-standing-planted"
AMONG = "one-of-several-planted"


@pytest.mark.parametrize(
    "text",
    [
        f" neighbor 192.0.2.1 password {FREE}\n",
        f" neighbor 192.0.2.1 password 8 {FREE}\n",
        f"  key-string {FREE}\n",
        f"Authorization: Bearer {FREE}",
        f"token: {JWT}",
        JWT,
        f'{{"client-key-data": "{FREE}", "token": "{FREE}"}}',
        f"password={FREE}",
        f"BGP_PASSWORD='{FREE} and more of {FREE}'",
        f"https://admin:{FREE}@192.0.2.1/",
        f"-----BEGIN RSA PRIVATE KEY-----\n{FREE}\n-----END RSA PRIVATE KEY-----\n",
        f"-----BEGIN PRIVATE KEY-----\n{FREE}",
        f"apiKey: {FREE}",
        f"Authorization: Basic {FREE}",
        f"--peer-router-passwords=other,{FREE}",
        f'"passwords": ["other]", "{FREE}"]',
        f"http://user:at@{FREE}@192.0.2.1/",
        f'{{".dockerconfigjson": "{FREE}"}}',
        f'token="{FREE} cut off',
    ],
)
def test_what_looks_like_a_secret_is_masked(text):
    assert FREE not in masked(text)
    assert "c2lnbmF0dXJl" not in masked(text)
    assert "***" in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "neighbor 192.0.2.1 remote-as 64512\n",
        "-A FORWARD -m set --match-set kube-router-pods-in dst -j KUBE-ROUTER-INGRESS\n",
        "net/ipv4/ip_forward = 1\n",
        "https://192.0.2.1:6443/api?x=1",
    ],
)
def test_what_is_none_stays(text):
    assert masked(text) == text


@pytest.mark.parametrize(
    "part", ["a", "token", "token-", "-eyJ", "password", "x://", "://a:", "eyJaaaaaaaa.", "bearer "]
)
def test_masking_takes_no_longer_for_what_a_stranger_makes_of_it(part):
    """Where a pattern went back and forth this would take hours."""
    text = part * (1_000_000 // len(part))
    assert len(masked(text)) <= len(text)


def test_what_would_move_a_cursor_is_escaped():
    assert masked("a\x1b[2J\x9bb\r\tc\n") == "a\\x1b[2J\\x9bb\\x0d\tc\n"


def test_secrets_that_are_known_go_wherever_they_stand():
    assert masked(f"a {FREE}x b", [FREE, "abc", ""]) == "a ***x b"


def test_of_variables_the_names_are_shown():
    text = environment({"NODE_NAME": "n1", "HTTP_PROXY": FREE}, ["NODE_NAME"])
    assert text == "HTTP_PROXY=***\nNODE_NAME=n1\n"


@pytest.fixture
def place(tmp_path):
    """An agent with secrets wherever there may be one."""
    account = tmp_path / "root/var/run/secrets/kubernetes.io/serviceaccount"
    account.mkdir(parents=True)
    (account / "token").write_text(f"{JWT}\n")
    file = tmp_path / "root/etc/passwords"
    file.parent.mkdir()
    file.write_text(base64.b64encode(IN_FILE.encode()).decode())
    cni = tmp_path / "root/etc/cni/net.d/10-kuberouter.conf"
    cni.parent.mkdir(parents=True)
    cni.write_text(f'{{"type": "bridge", "note": "{PASSWORD}", "token": "{FREE}"}}')
    flags = [
        *("--peer-router-ips=192.0.2.1,192.0.2.2", "--peer-router-asns=65000,65000"),
        f"--peer-router-passwords={ENCODED},{ENCODED}",
        "--peer-router-passwords-file=/etc/passwords",
    ]
    options = parse(flags, {})
    several = f"{base64.b64encode(AMONG.encode()).decode()},eA=="
    environ = {
        "BGP_PASSWORD": VARIABLE,
        "KUBE_ROUTER_PEER_ROUTER_PASSWORDS": several,
        "NODE_NAME": "node1",
        "HTTP_PROXY": f"http://u:{FREE}@p",
    }
    problems = [
        {
            "object": "Node node1",
            "field": "",
            "reason": f"{VARIABLE} {JWT} {IN_FILE} {PASSWORD} {AMONG}",
        }
    ]
    status = {"ready": True, "problems": problems, "more": {"password": FREE}}
    root = str(tmp_path / "root")
    return Place(options, environ, root, 0, status, given_text(options))


@pytest.fixture
def planted_programs(monkeypatch):
    """Every program and every FRR says a secret."""
    said = f"x {PASSWORD} {ENCODED} {IN_FILE} {VARIABLE} {JWT}\nneighbor 1.2.3.4 password {FREE}\n"
    monkeypatch.setattr(bundle, "_runner", lambda command: lambda: said)
    monkeypatch.setattr(bundle, "_frr", lambda run_dir: said)


def contents(file):
    with tarfile.open(file) as archive:
        return {
            entry.name: archive.extractfile(entry).read().decode() for entry in archive.getmembers()
        }


@pytest.mark.usefixtures("planted_programs")
def test_no_secret_that_was_planted_is_in_the_bundle(place, tmp_path):
    target = tmp_path / "node1.tar.gz"
    findings = {"findings": [{"what": f"{PASSWORD} {JWT}"}]}
    assert bundle.write_bundle(str(target), place, findings) == target.stat().st_size
    found = contents(target)
    for secret in (JWT, PASSWORD, ENCODED, IN_FILE, VARIABLE, FREE, AMONG):
        assert [name for name, text in found.items() if secret in text] == []
    assert "NODE_NAME=node1" in found["node1/environment.txt"]
    assert '"peer-router-ips": "192.0.2.1,192.0.2.2"' in found["node1/options.json"]
    for name in ("findings.json", "status.json", "versions.txt", "rules/iptables-nft.txt",
                 "rules/ipsets.txt", "network/routes-v4.txt", "ipvs/table.txt", "frr.txt",
                 "network/cni.txt", "kernel/sysctls.txt", "logs/journal.txt"):  # fmt: skip
        assert found[f"node1/{name}"]


@pytest.mark.usefixtures("planted_programs")
def test_the_file_is_its_owners_and_nothing_else_is_left(place, tmp_path):
    target = tmp_path / "out" / "b.tgz"
    target.parent.mkdir()
    target.write_text("an older one")
    bundle.write_bundle(str(target), place, {})
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [each.name for each in target.parent.iterdir()] == ["b.tgz"]


@pytest.mark.usefixtures("planted_programs")
def test_a_bundle_that_cannot_be_finished_leaves_the_one_before(place, tmp_path, monkeypatch):
    target = tmp_path / "out" / "b.tgz"
    target.parent.mkdir()
    target.write_text("an older one")

    def full(archive, name, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "_add", full)
    with pytest.raises(ConfigurationError, match="No space left"):
        bundle.write_bundle(str(target), place, {})
    assert target.read_text() == "an older one"
    assert [each.name for each in target.parent.iterdir()] == ["b.tgz"]


def test_passwords_on_the_agents_command_line_are_known():
    code = "import sys; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, "--v=1", f"--peer-router-passwords={ENCODED},eA=="]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        place = Place(parse([], {}), {}, "", running.pid)
        assert {PASSWORD, ENCODED} <= bundle._known_secrets(place)
        running.communicate(b"")


def test_what_fails_and_what_is_too_long_is_said_in_its_place(monkeypatch):
    def fail():
        raise OSError("no such program")

    assert bundle._text(fail, frozenset()) == "(not collected: no such program)\n"
    monkeypatch.setattr(bundle, "_MOST_BYTES", 10)
    text = bundle._text(lambda: "x" * 25, frozenset())
    assert text.startswith("x" * 10 + "\n")
    assert "15 characters more" in text


def test_of_a_secret_that_is_cut_in_two_nothing_is_left(monkeypatch):
    monkeypatch.setattr(bundle, "_MOST_BYTES", 20 + len(FREE) // 2)
    text = bundle._text(lambda: f"{'x' * 20}{FREE}{'y' * 20}", frozenset([FREE]))
    assert FREE[:4] not in text
    assert "x" in text


def test_secrets_are_known_as_json_and_logs_have_them(tmp_path):
    odd = 'with "quotes" and \\ in it'
    file = tmp_path / "passwords"
    file.write_text(base64.b64encode(odd.encode()).decode())
    options = parse([f"--peer-router-passwords-file={file}"], {})
    known = bundle._known_secrets(Place(options, {}))
    for text in (json.dumps({"x": odd}), f"x={odd!r}"):
        assert "quotes" not in masked(text, known)


def test_a_pipe_for_passwords_holds_nothing_up(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    options = parse([f"--peer-router-passwords-file={tmp_path / 'pipe'}"], {})
    assert not bundle._known_secrets(Place(options, {}))


@pytest.mark.usefixtures("planted_programs")
def test_a_file_that_somebody_put_in_the_way_stays(place, tmp_path):
    other = tmp_path / "other"
    other.write_text("theirs")
    target = tmp_path / "out" / "b.tgz"
    target.parent.mkdir()
    target.symlink_to(other)
    beside = target.with_name(f".b.tgz.{os.getpid()}")
    beside.symlink_to(other)
    bundle.write_bundle(str(target), place, {})
    assert other.read_text() == "theirs"
    assert beside.is_symlink()
    assert not target.is_symlink()

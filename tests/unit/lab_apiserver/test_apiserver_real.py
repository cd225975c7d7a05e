"""The command lines for a real kube-apiserver; the programs themselves are not run here."""

from pathlib import Path

import pytest

from kube_router_py.errors import PreflightError
from kube_router_py.lab.apiserver.real import (
    apiserver_command,
    etcd_command,
    find_programs,
    token_file,
)


def test_etcd_listens_on_loopback_only() -> None:
    command = etcd_command(Path("/opt/etcd"), Path("/data"), 2379, 2380)
    assert command[0] == "/opt/etcd"
    urls = [argument for argument in command if "http" in argument]
    assert urls
    assert all("127.0.0.1" in url for url in urls)
    assert "--data-dir=/data/etcd" in command


def test_apiserver_arguments() -> None:
    command = apiserver_command(
        Path("/opt/kube-apiserver"),
        Path("/data"),
        2379,
        ["10.0.0.1"],
        6443,
        ("10.96.0.0/16", "fd00:96::/112"),
    )
    assert "--etcd-servers=http://127.0.0.1:2379" in command
    assert "--bind-address=10.0.0.1" in command
    assert "--advertise-address=10.0.0.1" in command
    assert "--secure-port=6443" in command
    assert "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112" in command
    assert "--authorization-mode=RBAC" in command
    assert "--token-auth-file=/data/tokens.csv" in command
    assert "--service-account-key-file=/data/pki/server.crt" in command


def test_two_families_need_the_wildcard() -> None:
    addresses = ["fd00::1", "10.0.0.1"]
    command = apiserver_command(Path("/k"), Path("/data"), 1, addresses, 2, ("fd00:96::/112",))
    assert "--bind-address=::" in command
    assert "--advertise-address=fd00::1" in command


def test_the_token_file_names_accounts_as_authorisation_does() -> None:
    lines = token_file("abc", {("kube-system", "agent"): "def"}).splitlines()
    assert lines[0] == 'abc,kubernetes-admin,admin,"system:masters"'
    name = "system:serviceaccount:kube-system:agent"
    groups = "system:serviceaccounts,system:serviceaccounts:kube-system"
    assert lines[1] == f'def,{name},{name},"{groups}"'


def test_missing_programs_are_named(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="KUBEBUILDER_ASSETS"):
        find_programs({})
    program = tmp_path / "etcd"
    program.touch(mode=0o755)
    with pytest.raises(PreflightError, match="kube-apiserver") as caught:
        find_programs({"KUBEBUILDER_ASSETS": str(tmp_path)})
    assert f"missing: {tmp_path}/kube-apiserver" in str(caught.value)
    (tmp_path / "kube-apiserver").touch(mode=0o755)
    assert find_programs({"KUBEBUILDER_ASSETS": str(tmp_path)}).etcd == program

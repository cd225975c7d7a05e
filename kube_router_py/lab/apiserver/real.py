"""A real kube-apiserver and etcd instead of the lab's own, where KUBEBUILDER_ASSETS names them.

The same lab and the same suites then run against the original. etcd listens on loopback only; the
API server on one address the caller chooses, with a token file for the administrator and
ServiceAccount issuing on, so that RBAC is the real one.
"""

from __future__ import annotations

import os
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import PreflightError
from . import certificates, tokens


class Programs(NamedTuple):
    """The two programs."""

    etcd: Path
    apiserver: Path


def find_programs(environ: Mapping[str, str]) -> Programs:
    """The programs KUBEBUILDER_ASSETS names; PreflightError with the remedy when it does not."""
    directory = environ.get("KUBEBUILDER_ASSETS", "")
    programs = Programs(Path(directory) / "etcd", Path(directory) / "kube-apiserver")
    missing = [str(program) for program in programs if not os.access(program, os.X_OK)]
    if not directory or missing:
        raise PreflightError(
            "--apiserver real needs KUBEBUILDER_ASSETS to name a directory with etcd and "
            f"kube-apiserver (missing: {', '.join(missing) or 'the variable'}); "
            "setup-envtest use -p path prints one"
        )
    return programs


def etcd_command(program: Path, directory: Path, client_port: int, peer_port: int) -> list[str]:
    """etcd with its data under ``directory``, on loopback."""
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        str(program),
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]


def apiserver_command(
    program: Path,
    directory: Path,
    etcd_port: int,
    address: str,
    port: int,
    service_cidrs: Sequence[str],
) -> list[str]:
    """kube-apiserver with the certificates and the token file under ``directory``."""
    pki = directory / "pki"
    return [
        str(program),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={port}",
        f"--tls-cert-file={pki / 'server.crt'}",
        f"--tls-private-key-file={pki / 'server.key'}",
        f"--token-auth-file={directory / 'tokens.csv'}",
        f"--service-account-key-file={pki / 'server.key'}",
        f"--service-account-signing-key-file={pki / 'server.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={','.join(service_cidrs)}",
        "--authorization-mode=RBAC",
        # No controller makes the default ServiceAccount or its token in the lab.
        "--disable-admission-plugins=ServiceAccount",
        "--allow-privileged=true",
    ]


class RealApiServer:
    """Both processes; their data is lost with ``directory``."""

    def __init__(
        self, directory: Path, address: str, port: int, service_cidrs: Sequence[str]
    ) -> None:
        self._programs = find_programs(os.environ)
        self._directory = directory
        self._address = address
        self._port = port
        self._cidrs = tuple(service_cidrs)
        self._etcd: subprocess.Popen[bytes] | None = None
        self._apiserver: subprocess.Popen[bytes] | None = None
        self.certificates = certificates.create(directory / "pki", [address, "127.0.0.1"])
        self.admin_token = secrets.token_urlsafe(24)
        file = directory / "tokens.csv"
        file.touch(mode=0o600)
        file.write_text(f'{self.admin_token},kubernetes-admin,admin,"system:masters"\n')

    @property
    def url(self) -> str:
        """Where the API server answers."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"https://{host}:{self._port}"

    def start(self, timeout_s: float = 300.0) -> None:
        """Start both and wait until /readyz is ok; PreflightError with the log's place if not."""
        etcd_port, peer_port = _free_port(), _free_port()
        programs, directory = self._programs, self._directory
        self._etcd = self._run("etcd", etcd_command(programs.etcd, directory, etcd_port, peer_port))
        command = apiserver_command(
            programs.apiserver, directory, etcd_port, self._address, self._port, self._cidrs
        )
        self._apiserver = self._run("kube-apiserver", command)
        end = time.monotonic() + timeout_s
        while not self._is_ready():
            dead = self._apiserver.poll() is not None or self._etcd.poll() is not None
            if dead or time.monotonic() > end:
                self.stop()
                raise PreflightError(f"the real API server did not get ready: see {directory}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End both processes."""
        for process in (self._apiserver, self._etcd):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(20)
        self._apiserver = self._etcd = None

    def write_kubeconfig(self, path: Path) -> None:
        """The administrator's kubeconfig."""
        path.touch(mode=0o600)
        path.write_text(tokens.kubeconfig(self.url, self.certificates.ca_data(), self.admin_token))

    def _run(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._directory / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _is_ready(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.certificates.ca))
        headers = {"Authorization": f"Bearer {self.admin_token}"}
        request = urllib.request.Request(f"{self.url}/readyz", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5, context=context) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

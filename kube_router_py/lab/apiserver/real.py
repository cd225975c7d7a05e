"""A real kube-apiserver and etcd instead of the lab's own, where KUBEBUILDER_ASSETS names them.

etcd listens on the loopback of wherever it is started only; the API server on all of the lab's
addresses, with a token file for the administrator and the lab's ServiceAccounts, so that
authorisation is the real one.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import IO, Any, NamedTuple

from ...errors import PreflightError
from . import certificates, tokens
from .rest import Rest

ETCD_PORT, ETCD_PEER_PORT = 2379, 2380
START_DEADLINE_S = 300.0
STOP_DEADLINE_S = 20.0
REQUEST_TIMEOUT_S = 30.0

Run = Callable[[list[str], IO[bytes]], "subprocess.Popen[bytes]"]


class Programs(NamedTuple):
    """The two programs."""

    etcd: Path
    apiserver: Path


def find_programs(environ: Mapping[str, str]) -> Programs:
    """The programs KUBEBUILDER_ASSETS names; PreflightError with the remedy when it does not."""
    directory = environ.get("KUBEBUILDER_ASSETS", "")
    base = Path(directory).absolute()
    programs = Programs(base / "etcd", base / "kube-apiserver")
    missing = [str(program) for program in programs if not os.access(program, os.X_OK)]
    if not directory or missing:
        raise PreflightError(
            "--apiserver real needs KUBEBUILDER_ASSETS to name a directory with etcd and "
            f"kube-apiserver (missing: {', '.join(missing) if directory else 'the variable'}); "
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
    addresses: Sequence[str],
    port: int,
    service_cidrs: Sequence[str],
) -> list[str]:
    """kube-apiserver with the certificates and the token file under ``directory``.

    ``addresses``: where nodes reach it, of the first Service network's family first.
    """
    pki = directory / "pki"
    return [
        str(program),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        # One flag, one address: only the wildcard covers two families.
        f"--bind-address={addresses[0] if len(addresses) == 1 else '::'}",
        f"--advertise-address={addresses[0]}",
        f"--secure-port={port}",
        f"--cert-dir={pki}",
        f"--tls-cert-file={pki / 'server.crt'}",
        f"--tls-private-key-file={pki / 'server.key'}",
        f"--token-auth-file={directory / 'tokens.csv'}",
        # The certificate: of private keys only those in the older SEC 1 form are read here.
        f"--service-account-key-file={pki / 'server.crt'}",
        f"--service-account-signing-key-file={pki / 'server.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={','.join(service_cidrs)}",
        "--authorization-mode=RBAC",
        # Pods of the lab mount no token, and a pod may come before its namespace's account.
        "--disable-admission-plugins=ServiceAccount",
        "--allow-privileged=true",
    ]


def token_file(admin: str, accounts: Mapping[tuple[str, str], str]) -> str:
    """The token file: token, user, uid, groups; ``accounts``: (namespace, name) -> token."""
    lines = [f'{admin},kubernetes-admin,admin,"system:masters"\n']
    for (namespace, name), token in accounts.items():
        user = tokens.service_account(namespace, name)
        # The server adds system:authenticated by itself.
        groups = ",".join(group for group in user.groups if group != "system:authenticated")
        lines.append(f'{token},{user.name},{user.name},"{groups}"\n')
    return "".join(lines)


class RealApiServer:
    """Both processes; their data is lost with ``directory``. Every method may block."""

    def __init__(
        self,
        directory: Path,
        addresses: Sequence[str],
        port: int,
        service_cidrs: Sequence[str],
        *,
        run: Run,
        accounts: Sequence[tuple[str, str]] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """``run`` starts a command where the server is to live; its output goes to the file.

        ``accounts``: the ServiceAccounts (namespace, name) that get a token.
        """
        self._programs = find_programs(environ)
        self._directory = directory
        self._run_command = run
        self._etcd: subprocess.Popen[bytes] | None = None
        self._apiserver: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        cluster_ips = [str(ip_network(cidr)[1]) for cidr in service_cidrs]
        names = ("127.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc", *cluster_ips)
        self.certificates = certificates.create(directory / "pki", (*addresses, *names))
        self.admin_token = secrets.token_urlsafe(24)
        self.account_tokens = {account: secrets.token_urlsafe(24) for account in accounts}
        file = directory / "tokens.csv"
        file.touch(mode=0o600)
        file.write_text(token_file(self.admin_token, self.account_tokens))
        self._command = apiserver_command(
            self._programs.apiserver, directory, ETCD_PORT, addresses, port, service_cidrs
        )

    def start(self, url: str, timeout_s: float = START_DEADLINE_S) -> None:
        """Start what does not run and wait until ``url`` is ready; PreflightError if it is not."""
        if self._etcd is None:
            command = etcd_command(self._programs.etcd, self._directory, ETCD_PORT, ETCD_PEER_PORT)
            self._etcd = self._run("etcd", command)
        if self._apiserver is None or self._apiserver.poll() is not None:
            self._apiserver = self._run("kube-apiserver", self._command)
        end = time.monotonic() + timeout_s
        rest = Rest(url, self.admin_token, self.certificates.ca)
        try:
            while not rest.is_ready():
                dead = self._apiserver.poll() is not None or self._etcd.poll() is not None
                if dead or time.monotonic() > end:
                    raise PreflightError(f"the real API server did not get ready:\n{self.tail()}")
                time.sleep(0.2)
        finally:
            rest.close()

    def kill(self) -> None:
        """SIGKILL for the API server alone: etcd keeps everything for the next ``start``."""
        if self._apiserver is not None:
            self._apiserver.kill()
            self._apiserver.wait(STOP_DEADLINE_S)

    def stop(self) -> None:
        """End both processes."""
        for process in (self._apiserver, self._etcd):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_DEADLINE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(STOP_DEADLINE_S)
        self._apiserver = self._etcd = None

    def compact(self) -> int:
        """Make etcd forget its history; returns the revision. Call where etcd's loopback is."""
        head = _ask_etcd("/v3/kv/range", {"key": base64.b64encode(b"\0").decode()})
        revision = int(head["header"]["revision"])
        _ask_etcd("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def write_kubeconfig(self, path: Path, url: str) -> None:
        """The administrator's kubeconfig."""
        path.touch(mode=0o600)
        path.write_text(tokens.kubeconfig(url, self.certificates.ca_data(), self.admin_token))

    def tail(self, lines: int = 10) -> str:
        """The end of both logs."""
        found = []
        for name in ("etcd", "kube-apiserver"):
            log = self._directory / f"{name}.log"
            text = log.read_text(errors="replace") if log.exists() else ""
            found += [f"{name}: {line}" for line in text.splitlines()[-lines:]]
        return "\n".join(found)

    def _run(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._directory / f"{name}.log").open("ab") as log:
            return self._run_command(command, log)


def _ask_etcd(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """One call of etcd's JSON gateway; PreflightError when it fails."""
    url = f"http://127.0.0.1:{ETCD_PORT}{path}"
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as answer:
            return dict(json.load(answer))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise PreflightError(f"etcd refused {path}: {error}") from error

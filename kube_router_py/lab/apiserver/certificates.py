"""A CA and a server certificate for the lab, made by the openssl program (3.0 or newer)."""

from __future__ import annotations

import base64
import ipaddress
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import PreflightError

_CONFIG = """\
[req]
distinguished_name = name
prompt = no
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


class Certificates(NamedTuple):
    """PEM files."""

    ca: Path
    certificate: Path
    key: Path

    def ca_data(self) -> str:
        """The CA certificate in base64, as a kubeconfig carries it."""
        return base64.b64encode(self.ca.read_bytes()).decode()

    def server_context(self) -> ssl.SSLContext:
        """TLS for the server's side."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def _openssl(*arguments: str) -> None:
    try:
        subprocess.run(
            ["openssl", *arguments], check=True, capture_output=True, text=True, timeout=120
        )
    except FileNotFoundError as error:
        raise PreflightError("openssl is not installed: apt-get install openssl") from error
    except subprocess.CalledProcessError as error:
        raise PreflightError(f"openssl {arguments[0]} failed: {error.stderr.strip()}") from error


def _alternative_name(name: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def create(directory: Path, names: Sequence[str]) -> Certificates:
    """Make a CA and a certificate for the IP addresses and DNS names, valid for a year."""
    directory.mkdir(parents=True, exist_ok=True)
    alternatives = ", ".join(dict.fromkeys(_alternative_name(name) for name in names))
    config = directory / "openssl.cnf"
    config.write_text(_CONFIG.format(names=alternatives))
    ca, ca_key = directory / "ca.crt", directory / "ca.key"
    certificate, key = directory / "server.crt", directory / "server.key"
    common = ("req", "-x509", "-config", str(config), "-newkey", "ec", "-nodes", "-days", "365")
    curve = ("-pkeyopt", "ec_paramgen_curve:P-256")
    _openssl(
        *common, *curve, "-subj", "/CN=kube-router-py lab CA", "-extensions", "ca",
        "-keyout", str(ca_key), "-out", str(ca),
    )  # fmt: skip
    _openssl(
        *common, *curve, "-subj", "/CN=kube-router-py lab", "-extensions", "server",
        "-CA", str(ca), "-CAkey", str(ca_key), "-keyout", str(key), "-out", str(certificate),
    )  # fmt: skip
    return Certificates(ca, certificate, key)

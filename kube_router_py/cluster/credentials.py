"""Which API server addresses to use, and with which credentials.

The ``kubernetes`` package reads kubeconfig files and the ServiceAccount, runs exec plugins and
refreshes tokens. It is imported when first needed: its import costs a sixth of a second on a fast
machine and several in emulation.
"""

import copy
import ipaddress
import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from kube_router_py.errors import ApiError, ConfigurationError

T = TypeVar("T")

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

_HOST = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?\.?")

# An exec plugin may talk to a cloud; one that takes longer than this hangs.
_PLUGIN_TIMEOUT_S = 60.0


class ConnectionOptions(Protocol):
    """The flags this module reads. ``master`` may be a comma-separated list."""

    @property
    def master(self) -> str: ...
    @property
    def kubeconfig(self) -> str: ...


class Credentials:
    """Addresses and credentials from flags, kubeconfig or ServiceAccount.

    A kubeconfig wins: its credentials are used and its server comes first, the addresses of
    ``--master`` after it. ``--master`` alone means the ServiceAccount's credentials at these
    addresses, in turn; with neither, the address is the environment's KUBERNETES_SERVICE_HOST (a
    comma-separated list is tried in turn) and KUBERNETES_SERVICE_PORT.

    Raises ConfigurationError where that does not add up.
    """

    def __init__(
        self,
        options: ConnectionOptions,
        environ: Mapping[str, str] = os.environ,
        service_account: str = SERVICE_ACCOUNT,
    ) -> None:
        self._kubeconfig = options.kubeconfig
        self._service_account = service_account
        self._lock = threading.Lock()
        self._hung: threading.Thread | None = None
        masters = tuple(
            _master_url(part.strip()) for part in options.master.split(",") if part.strip()
        )
        self.addresses: tuple[str, ...]
        self._source: Any
        if self._kubeconfig:
            self.addresses = ()
            self._source = self._load()
            self.addresses = tuple(dict.fromkeys((self._source.host.rstrip("/"), *masters)))
        else:
            self.addresses = masters or _addresses_from_environment(environ)
            self._source = self._load()

    def configurations(self) -> list[Any]:
        """One ``kubernetes.client.Configuration`` per address."""
        found = []
        for address in self.addresses:
            configuration = copy.deepcopy(self._source)
            configuration.host = address
            # urllib3 would sleep and retry where nothing can wake it; retrying is our caller's.
            configuration.retries = False
            configuration.keep_alive = True
            configuration.refresh_api_key_hook = self._refresh
            found.append(configuration)
        return found

    def reload(self) -> None:
        """Read everything anew: rotated files, a plugin's new answer. Raises ApiError."""
        try:
            with self._lock:
                self._source = self._load()
        except ConfigurationError as error:
            raise ApiError(f"the credentials cannot be renewed: {error}") from error

    def _refresh(self, configuration: Any) -> None:
        """Bring a copy's token up to date; the package's own hook would also reset its host."""
        source = self._source
        hook = source.refresh_api_key_hook
        # The token of before may be good still; if not, the server says so.
        if hook is not None and not self._is_hanging():
            with self._lock:
                try:
                    self._bounded(lambda: hook(source), "renewing the token")
                except ConfigurationError as error:
                    raise ApiError(f"the credentials cannot be renewed: {error}") from error
        configuration.api_key = dict(source.api_key)

    def _load(self) -> Any:
        if self._kubeconfig:
            return self._bounded(self._load_kubeconfig, f"reading --kubeconfig {self._kubeconfig}")
        return self._load_service_account()

    def _load_kubeconfig(self) -> Any:
        from kubernetes.client import Configuration
        from kubernetes.config import load_kube_config

        if not os.path.isfile(self._kubeconfig):
            raise ConfigurationError(
                f"--kubeconfig {self._kubeconfig}: there is no such file; correct the path"
            )
        configuration = Configuration()
        load_kube_config(self._kubeconfig, client_configuration=configuration, persist_config=False)
        server = urlsplit(configuration.host)
        if server.scheme not in ("http", "https") or not server.hostname:
            raise ConfigurationError(
                f"--kubeconfig {self._kubeconfig}: the server of the current context is"
                f" {configuration.host!r}; write it like https://ADDRESS:PORT"
            )
        return configuration

    def _load_service_account(self) -> Any:
        from kubernetes.client import Configuration
        from kubernetes.config.config_exception import ConfigException
        from kubernetes.config.incluster_config import InClusterConfigLoader

        configuration = Configuration()
        token = os.path.join(self._service_account, "token")
        if not os.path.exists(token):
            if all(address.startswith("http://") for address in self.addresses):
                return configuration
            raise ConfigurationError(
                f"there is no ServiceAccount token at {token}: run in a pod with"
                f" automountServiceAccountToken, or give --kubeconfig"
            )
        # The loader insists on an address; ours replace it in every copy.
        environ = {"KUBERNETES_SERVICE_HOST": "unused", "KUBERNETES_SERVICE_PORT": "443"}
        certificate = os.path.join(self._service_account, "ca.crt")
        try:
            InClusterConfigLoader(token, certificate, environ=environ).load_and_set(configuration)
        except (ConfigException, OSError) as error:
            raise ConfigurationError(
                f"the ServiceAccount in {self._service_account} cannot be used: {error}"
            ) from error
        return configuration

    def _is_hanging(self) -> bool:
        return self._hung is not None and self._hung.is_alive()

    def _bounded(self, call: Callable[[], T], what: str) -> T:
        """Run foreign code that may hang (it starts plugins without a time limit), but not for
        ever, and nothing beside what hangs.

        Raises ConfigurationError with the reason for any failure.
        """
        if self._is_hanging():
            raise ConfigurationError(f"{what} waits for a plugin that hangs; end its process")
        results: list[T] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                failures.append(error)

        thread = threading.Thread(target=run, name="credentials", daemon=True)
        thread.start()
        thread.join(_PLUGIN_TIMEOUT_S)
        if results:
            return results[0]
        if failures:
            if isinstance(failures[0], ConfigurationError):
                raise failures[0]
            raise ConfigurationError(f"{what} failed: {failures[0]}") from failures[0]
        self._hung = thread
        raise ConfigurationError(f"{what} did not end within {_PLUGIN_TIMEOUT_S:g} s")


def _master_url(text: str) -> str:
    """A ``--master`` entry as a URL: https where no scheme is given."""
    if "://" not in text:
        text = f"https://[{text}]" if text.count(":") > 1 and "[" not in text else f"https://{text}"
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises for what is no port number
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"--master {text!r} is no address of an API server; write https://ADDRESS:PORT"
        )
    return text.rstrip("/")


def _addresses_from_environment(environ: Mapping[str, str]) -> tuple[str, ...]:
    hosts = [h.strip() for h in environ.get("KUBERNETES_SERVICE_HOST", "").split(",") if h.strip()]
    port = environ.get("KUBERNETES_SERVICE_PORT", "").strip()
    if not hosts and "KUBERNETES_SERVICE_HOST" in environ:
        raise ConfigurationError(
            "KUBERNETES_SERVICE_HOST is empty: write an address of the API server there that nodes"
            " reach without Services (api-host in the ConfigMap of the manifests)"
        )
    if not hosts or not port:
        raise ConfigurationError(
            "no API server is known: give --kubeconfig or --master, or run in a pod, where"
            " KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are set"
        )
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigurationError(
            f"KUBERNETES_SERVICE_PORT {port!r} is no port; write a number from 1 to 65535"
        )
    return tuple(f"https://{_host_in_url(host)}:{port}" for host in hosts)


def _host_in_url(text: str) -> str:
    """An entry of KUBERNETES_SERVICE_HOST, which people like to write as a URL or with a port."""
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        if not _HOST.fullmatch(text):
            raise ConfigurationError(
                f"KUBERNETES_SERVICE_HOST has {text!r}, which is neither an IP address nor a name;"
                f" write it without scheme, the port into KUBERNETES_SERVICE_PORT"
            ) from None
        return text
    return f"[{text.strip('[]')}]" if address.version == 6 else text

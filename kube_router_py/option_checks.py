"""Checks of several flags, and of files; a flag's own check is its kind (``option_types``)."""

from collections.abc import Callable, Iterator

from kube_router_py.option_table import Options
from kube_router_py.option_types import IPNetwork, parse_password, show_duration

# Nobody has so many routers; and reading must end, whatever the path names.
_LONGEST_FILE = 1 << 20


def check(options: Options) -> list[str]:
    """Every mistake in the combination of flags, each with its remedy."""
    return [message for find in _CHECKS for message in find(options)]


def check_files(options: Options) -> list[str]:
    """Every mistake in the files that flags name, as far as it shows without using them."""
    return [*_kubeconfig(options), *_passwords_file(options)]


def _kubeconfig(options: Options) -> Iterator[str]:
    if options.kubeconfig:
        text, mistake = _read("kubeconfig", options.kubeconfig)
        if mistake:
            yield mistake
        elif not text.strip():
            yield f"--kubeconfig {options.kubeconfig!r} is empty; write a kubeconfig there"


def _passwords_file(options: Options) -> Iterator[str]:
    path = options.peer_router_passwords_file
    if not path:
        return
    text, mistake = _read("peer-router-passwords-file", path)
    name = f"--peer-router-passwords-file {path!r}"
    if mistake:
        yield mistake
        return
    items = [item.strip() for item in text.strip().split(",")]
    for number, item in enumerate(items, 1):
        try:
            parse_password(item)
        except ValueError as error:
            yield f"{name} has the item number {number}, which {error}"
    peers = len(options.peer_router_ips)
    if peers and not options.peer_router_passwords and len(items) != peers:
        yield (
            f"{name} has {len(items)} items, but --peer-router-ips "
            f"has {peers}; give one for each router, in the same order, empty where there is none"
        )


def _read(flag: str, path: str) -> tuple[str, str]:
    """What the file says, and what is wrong with it: one of them is empty."""
    try:
        with open(path, "rb") as file:
            content = file.read(_LONGEST_FILE)
    except OSError as error:
        return "", f"--{flag} {path!r} cannot be read: {error.strerror}; correct the path"
    except ValueError as error:
        return "", f"--{flag} {path!r} cannot be read: {error}; correct the path"
    return content.decode(errors="replace"), ""


def _families(options: Options) -> Iterator[str]:
    if not (options.enable_ipv4 or options.enable_ipv6):
        yield ("--enable-ipv4=false and --enable-ipv6=false leave no address family; enable one")


def _is_enabled(options: Options, network: IPNetwork) -> bool:
    return options.enable_ipv4 if network.version == 4 else options.enable_ipv6


def _cluster_ip_range(options: Options) -> Iterator[str]:
    ranges = options.service_cluster_ip_range
    shown = ",".join(map(str, ranges))
    if not ranges and options.enable_ipv4:
        yield "--service-cluster-ip-range is empty; give the range that the cluster has"
    if len(ranges) > 2:
        yield (
            f"--service-cluster-ip-range {shown!r} has {len(ranges)} CIDRs; "
            "give one, or one of each address family"
        )
    elif len({network.version for network in ranges}) < len(ranges):
        yield (
            f"--service-cluster-ip-range {shown!r} has two CIDRs of one address family; "
            "give one of each"
        )
    for network in ranges:
        if not _is_enabled(options, network):
            yield (
                f"--service-cluster-ip-range {shown!r} has {network}, but IPv{network.version} is "
                f"off; leave it out, or set --enable-ipv{network.version}"
            )


def _node_port_addresses(options: Options) -> Iterator[str]:
    if options.nodeport_bindon_all_ip and options.nodeport_addresses:
        shown = ",".join(map(str, options.nodeport_addresses))
        yield (
            f"--nodeport-addresses {shown!r} and --nodeport-bindon-all-ip contradict each other; "
            "leave one of them out"
        )


def _loadbalancer_range(options: Options) -> Iterator[str]:
    if not options.run_loadbalancer:
        return
    for network in options.loadbalancer_ip_range:
        if not _is_enabled(options, network):
            yield (
                f"--loadbalancer-ip-range has {network}, but IPv{network.version} is off; leave it "
                f"out, or set --enable-ipv{network.version}"
            )


def _aggregates(options: Options) -> Iterator[str]:
    for network in options.advertise_aggregate:
        if not _is_enabled(options, network):
            yield (
                f"--advertise-aggregate has {network}, but IPv{network.version} is off; leave it "
                f"out, or set --enable-ipv{network.version}"
            )


def _graceful_restart(options: Options) -> Iterator[str]:
    if not options.bgp_graceful_restart:
        return
    limits = (
        ("bgp-graceful-restart-time", options.bgp_graceful_restart_time, 4095),
        ("bgp-graceful-restart-deferral-time", options.bgp_graceful_restart_deferral_time, 64800),
    )
    for name, seconds, most in limits:
        if not 0 < seconds <= most:
            yield (
                f"--{name} {show_duration(seconds)!r} is out of range; with --bgp-graceful-restart "
                f"it must be more than 0s and at most {show_duration(most)}"
            )


def _peers(options: Options) -> Iterator[str]:
    peers = len(options.peer_router_ips)
    lists: tuple[tuple[str, int, bool], ...] = (
        ("peer-router-asns", len(options.peer_router_asns), False),
        ("peer-router-ports", len(options.peer_router_ports), True),
        ("peer-router-passwords", len(options.peer_router_passwords), True),
    )
    for name, count, may_be_empty in lists:
        if count != peers and not (may_be_empty and count == 0):
            remedy = " or none at all" if may_be_empty and peers else ""
            yield (
                f"--{name} has {count} items, but --peer-router-ips has {peers}; give one for each "
                f"router, in the same order{remedy}"
            )
    if len(set(options.peer_router_ips)) < peers:
        yield "--peer-router-ips names a router twice; name each one once"


def _http_ports(options: Options) -> Iterator[str]:
    if options.metrics_port and options.metrics_port == options.health_port:
        yield (
            f"--metrics-port {options.metrics_port} is also the --health-port; choose another for "
            "one of them"
        )
    others = {options.metrics_port, options.health_port} - {0}
    if options.enable_pprof and options.pprof_port in others:
        yield (
            f"--pprof-port {options.pprof_port} is the --metrics-port or the --health-port, too; "
            "choose another"
        )


_CHECKS: tuple[Callable[[Options], Iterator[str]], ...] = (
    _families,
    _cluster_ip_range,
    _node_port_addresses,
    _loadbalancer_range,
    _aggregates,
    _graceful_restart,
    _peers,
    _http_ports,
)

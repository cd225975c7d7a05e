"""All looks at a node in their order, and what is left out where another finding explains it."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import kube_router_py
from kube_router_py.adapters import check_capabilities
from kube_router_py.cluster.node import NodeView
from kube_router_py.doctor import (
    agent_state,
    bgp,
    cluster,
    facts_features,
    facts_frr,
    facts_host,
    network,
    resources,
)
from kube_router_py.doctor.cluster_view import ClusterView, look_at_cluster
from kube_router_py.doctor.findings import (
    ERROR,
    WARNING,
    Finding,
    before_start,
    by_weight,
    found,
)
from kube_router_py.doctor.host_rules import look_at_rules
from kube_router_py.doctor.look import Look
from kube_router_py.doctor.network import Link
from kube_router_py.doctor.place import Place
from kube_router_py.errors import PreflightError
from kube_router_py.kernel.frr_preflight import check_version
from kube_router_py.kernel.program import run
from kube_router_py.proxy.host import kernel_version
from kube_router_py.proxy.settings import proxy_options
from kube_router_py.proxy.sysctls import sysctls

_FRR_PROGRAMS = "/usr/lib/frr"
_TIMEOUT_S = 30.0


def examine(
    place: Place, before: Iterable[Finding], node_name: str, *, is_preflight: bool
) -> tuple[Finding, ...]:
    """All findings, what is worst first. ``before``: those of finding the agent."""
    look = Look(before)
    if not place.is_here:
        return by_weight(look.findings)
    look.at("privileges", lambda: _look_at_privileges(look, place))
    view = (
        look.at(
            "cluster", lambda: look_at_cluster(look, place, node_name, is_preflight=is_preflight)
        )
        or ClusterView()
    )
    links = look.at("links", facts_host.links) or ()
    stages: dict[str, Callable[[], None]] = {
        "kernel": lambda: _look_at_kernel(look, place, view, links, is_preflight=is_preflight),
        "rules": lambda: look_at_rules(look, place, links, is_preflight=is_preflight),
        "BGP": lambda: _look_at_frr(look, place, is_preflight=is_preflight),
        "CNI": lambda: _look_at_cni(look, place, view.node, is_preflight=is_preflight),
    }
    if not is_preflight:
        stages["network"] = lambda: _look_at_network(look, place, view, links)
        stages["capacity"] = lambda: _look_at_capacity(look, place)
        # The last: it leaves out what is told already.
        stages["agent"] = lambda: _look_at_agent(look, place)
    for name, stage in stages.items():
        look.at(name, stage)
    return by_weight(settled(look.findings, is_preflight=is_preflight))


def _look_at_agent(look: Look, place: Place) -> None:
    if place.status is not None:
        balancer = place.status.get("load_balancer")
        if isinstance(balancer, Mapping):
            pools, waiting = balancer.get("pools") or (), int(balancer.get("waiting") or 0)
            look.tell(cluster.check_pools(pools, waiting))
        version = kube_router_py.__version__
        look.tell(tuple(agent_state.state(place.status, version, look.findings)))


def settled(findings: Iterable[Finding], *, is_preflight: bool) -> list[Finding]:
    """What is left when all is known: before the start what the agent can live with is no error,
    and where there is a reason for it, it is not told that no agent runs."""
    kept = list(before_start(findings) if is_preflight else findings)
    if any(each.severity == ERROR and each.code != "agent-not-running" for each in kept):
        kept = [each for each in kept if each.code != "agent-not-running"]
    return kept


def _look_at_privileges(look: Look, place: Place) -> None:
    options = place.options
    if place.is_running:
        return  # what it lacks it tells itself
    try:
        check_capabilities()
    except PreflightError as error:
        what, _, remedy = str(error).partition("; ")
        look.tell([found("capability-missing", "capability CAP_NET_ADMIN", what, remedy)])
    programs = ["ipset", "ip"]
    programs += ["ip6tables"] * options.enable_ipv6 + ["iptables"] * options.enable_ipv4
    if not (options.run_service_proxy or options.run_firewall or options.run_router):
        programs = []
    for name in programs:
        if shutil.which(name) is None:
            remedy = "install it (packages iptables, ipset, iproute2), as in the agent's image"
            # The agent runs ip(8) only to see what others left.
            weight = WARNING if name == "ip" else ""
            what = "it is not installed"
            look.tell([found("program-missing", f"program {name}", what, remedy, weight)])
    writable = Path(options.proc_sys_path, "net/ipv4/conf/all")
    if writable.is_dir() and not os.access(writable / "forwarding", os.W_OK):
        look.tell(
            [
                found(
                    "sysctl-read-only",
                    options.proc_sys_path,
                    "kernel parameters of the network cannot be written there",
                    "mount the node's /proc/sys/net elsewhere in the container, writable, and name "
                    "it by --proc-sys-path, as the manifests do",
                )
            ]
        )


def _look_at_kernel(
    look: Look, place: Place, view: ClusterView, links: Iterable[Link], *, is_preflight: bool
) -> None:
    options = place.options
    tunnels = view.node is not None and network.needs_tunnels(links, view.node, view.nodes, options)
    needs = resources.needed_modules(options, view.schedulers, tunnels=tunnels)
    missing = look.at("kernel modules", lambda: facts_features.missing(needs, place.root))
    look.tell(resources.modules(missing or (), needs))
    if is_preflight or not place.is_running:
        return
    wanted = list(resources.wanted_parameters(options))
    if options.run_service_proxy and "kube-proxy-running" not in look.codes:
        own = {str(each) for each in view.node.addresses} if view.node else set()
        with_own = [link.name for link in links if own.intersection(link.addresses)]
        cores = os.cpu_count() or 1
        wanted += sysctls(proxy_options(options), with_own, kernel_version(), cores)
    names = [each.name for each in wanted]
    actual = look.at("kernel parameters", lambda: facts_host.parameters(names))
    if actual is not None:
        lacking = {each.object for each in look.findings if each.code == "kernel-module-missing"}
        if "module ip_vs" in lacking:
            wanted = [each for each in wanted if not each.name.startswith("net/ipv4/vs/")]
        look.tell(resources.parameters(wanted, actual))


def _look_at_frr(look: Look, place: Place, *, is_preflight: bool) -> None:
    options = place.options
    if not options.run_router:
        return
    missing: list[str] = []
    unsupported = ""
    if not place.root and options.frr_mode == "managed":
        names = ("zebra", "bgpd", "bfdd") if options.enable_bfd else ("zebra", "bgpd")
        programs = [f"{_FRR_PROGRAMS}/{name}" for name in names]
        missing = [each for each in programs if not os.access(each, os.X_OK)]
        if not missing:
            said = look.at(
                "FRR", lambda: run([programs[0], "--version"], timeout_s=_TIMEOUT_S).stdout
            )
            try:
                check_version(said or "")
            except PreflightError as error:
                unsupported = str(error)
    is_up = _is_up(place)
    look.tell(
        bgp.frr(
            missing,
            unsupported,
            is_up=is_up,
            agent_runs=place.is_running and not is_preflight,
            options=options,
        )
    )
    own = look.at(
        "FRR's processes",
        lambda: facts_host.frr_processes(place.run_dir) | facts_host.processes_of(options.frr_dir),
    )
    seen = look.at("processes", lambda: facts_host.bgp_processes(options.bgp_port))
    look.tell(bgp.daemons(seen or (), own or (), options, frr_is_up=is_up))
    if is_up and not is_preflight:
        looked = look.at("BGP sessions", lambda: facts_frr.look(place.run_dir))
        if looked is not None:
            look.tell(bgp.sessions(looked))


def _is_up(place: Place) -> bool:
    try:
        return facts_frr.is_up(place.run_dir)
    except Exception:  # noqa: BLE001 - that it does not answer is what was asked
        return False


def _look_at_network(look: Look, place: Place, view: ClusterView, links: tuple[Link, ...]) -> None:
    if view.node is None:
        return
    look.tell(network.mtus(links, view.node, view.nodes, place.options))
    options = place.options
    families = ["inet"] * options.enable_ipv4 + ["inet6"] * options.enable_ipv6
    cached = look.at("path MTUs", lambda: facts_host.cached_paths(families))
    look.tell(network.paths(cached or {}, links, view.nodes, view.node))


def _look_at_cni(look: Look, place: Place, node: NodeView | None, *, is_preflight: bool) -> None:
    options = place.options
    if not (options.run_router and options.enable_cni):
        return
    files = look.at(
        "CNI configuration", lambda: facts_host.cni_files(options.cni_conf_file, place.root)
    )
    if files is None:
        return
    if files.text is None and (is_preflight or not place.is_running):
        node = None  # the agent makes the file
    look.tell(network.cni(files, node, options))


def _look_at_capacity(look: Look, place: Place) -> None:
    options = place.options
    prefix = "net/netfilter/nf_conntrack_"
    limit = look.at("conntrack", lambda: facts_host.number(f"{prefix}max"))
    count = look.at("conntrack", lambda: facts_host.number(f"{prefix}count"))
    memory = look.at("memory", facts_host.memory)
    look.tell(resources.conntrack(limit, count, memory or 0, os.cpu_count() or 1, options))
    if place.pid:
        pid = place.pid
        held = look.at("the agent's files", lambda: facts_host.open_files(pid))
        if held is not None:
            look.tell(resources.descriptors(*held))

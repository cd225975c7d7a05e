"""What the node and its kernel give: modules, parameters, room for connections and files. Pure."""

from collections.abc import Iterable, Iterator, Mapping

from kube_router_py.doctor.findings import WARNING, Finding, found
from kube_router_py.kernel.modules import FIREWALL, PROXY
from kube_router_py.options import Options
from kube_router_py.proxy.sysctls import Sysctl

_NEARLY_FULL, _FULL = 0.75, 0.9
# What the kernel chooses by itself (net/netfilter/nf_conntrack_core.c, nf_conntrack_init_start).
_GIB = 1 << 30
_TUNNELS = {"ipip": ("ipip",), "vxlan": ("vxlan",), "fou": ("ipip", "fou")}
_TUNNELS_6 = {"ipip": ("ip6_tunnel",), "vxlan": ("vxlan",), "fou": ("ip6_tunnel", "fou6")}
# Most works without.
_LESS = frozenset(("br_netfilter", "nf_conntrack_netlink"))
_INSTALL = (
    "load it on the host (modprobe {}), mount its /lib/modules into the container, or install the "
    "package with the distribution's extra modules (linux-modules-extra-*, kernel-modules-extra)"
)


def needed_modules(
    options: Options, schedulers: Iterable[str] = (), *, tunnels: bool
) -> dict[str, str]:
    """Modules of the parts that run, and what for; ``tunnels``: some node is behind one."""
    needs: dict[str, str] = {}
    if options.run_service_proxy:
        needs |= PROXY
        needs |= {f"ip_vs_{name}": f"the scheduler {name}" for name in schedulers}
    if options.run_firewall:
        needs |= FIREWALL
    if options.run_router and options.enable_overlay and tunnels:
        encap = options.overlay_encap
        names = (_TUNNELS[encap] * options.enable_ipv4) + (_TUNNELS_6[encap] * options.enable_ipv6)
        needs |= dict.fromkeys(names, f"tunnels ({encap}) to other nodes")
    return needs


def modules(missing: Iterable[str], needs: Mapping[str, str]) -> Iterator[Finding]:
    for name in sorted(missing):
        yield found(
            "kernel-module-missing",
            f"module {name}",
            "the kernel has neither this module nor its function, and does not load it by itself; "
            f"needed for {needs[name]}",
            _INSTALL.format(name),
            WARNING if name in _LESS or _is_scheduler(name) else "",
        )


def _is_scheduler(name: str) -> bool:
    """Whether only those Services need it that name it: anyone may who may write a Service."""
    return name.startswith("ip_vs_") and name not in PROXY


def wanted_parameters(options: Options) -> tuple[Sysctl, ...]:
    """Those of the firewall and the router; of the service proxy see ``proxy.sysctls``."""
    names: list[Sysctl] = []
    for is_on, program, forwarding in (
        (options.enable_ipv4, "iptables", "net/ipv4/ip_forward"),
        (options.enable_ipv6, "ip6tables", "net/ipv6/conf/all/forwarding"),
    ):
        if is_on and options.run_firewall:
            bridge = f"net/bridge/bridge-nf-call-{program}"
            names.append(Sysctl(bridge, "1", is_optional=True))
        if is_on and options.run_router:
            names.append(Sysctl(forwarding, "1"))
    return tuple(names)


def parameters(wanted: Iterable[Sysctl], actual: Mapping[str, str | None]) -> Iterator[Finding]:
    """Compare while an agent runs, which sets them."""
    for each in {each.name: each for each in wanted}.values():
        standing = actual.get(each.name)
        if each.is_tuning or (standing is None and (each.is_optional or each.advice)):
            continue
        if standing is None:
            yield found(
                "sysctl-wrong",
                f"sysctl {each.name}",
                "the kernel has no such parameter",
                "load the module that brings it",
            )
            continue
        is_enough = each.is_minimum and standing.isdigit() and int(standing) >= int(each.value)
        applies = each.only_from in (None, standing)
        if standing != each.value and applies and not is_enough:
            yield found(
                "sysctl-wrong",
                f"sysctl {each.name}",
                f"it is {standing}, the agent needs {each.value}",
                f"find out who changes it (sysctl.d, tuned); sysctl -w {each.name}={each.value}, "
                "or restart the agent, which sets it",
            )


def conntrack(
    limit: int | None, count: int | None, memory: int, cores: int, options: Options
) -> Iterator[Finding]:
    """``limit`` and ``count`` of tracked connections, ``memory`` in bytes."""
    if not limit:
        return
    wanted = max(options.conntrack_min, options.conntrack_max_per_core * cores)
    usual = 262144 if memory > 4 * _GIB else 65536 if memory > _GIB else memory // 131072
    least = min(wanted, usual)
    remedy = (
        f"sysctl -w net.netfilter.nf_conntrack_max={max(wanted, least)} (and in sysctl.d), or "
        "--conntrack-max-per-core and --conntrack-min where the agent may set it"
    )
    table = "sysctl net/netfilter/nf_conntrack_max"
    if limit < least:
        text = f"there is room for {limit} connections, fewer than {least} for {cores} cores"
        yield found(
            "conntrack-small", table, f"{text}; new ones are dropped when it is full", remedy
        )
    if count is not None and count > _NEARLY_FULL * limit:
        text = f"{count} of {limit} connections are tracked; new ones are dropped when it is full"
        yield found("conntrack-full", table, text, remedy, "" if count > _FULL * limit else WARNING)


def descriptors(used: int | None, limit: int | None) -> Iterator[Finding]:
    if limit is None:
        return
    if limit < 1024 or (used is not None and used > 0.8 * limit):
        yield found(
            "file-descriptors-short",
            "agent",
            f"it may open {limit} files" + (f" and has {used} open" if used is not None else ""),
            "raise the limit (LimitNOFILE= of the systemd unit, or the container runtime's)",
        )

"""What the service proxy needs of its host beside IPVS: kernel parameters, VIP link, source NAT."""

import logging
import os
from collections.abc import Iterable

from kube_router_py.errors import KernelError
from kube_router_py.kernel.ports import HostPorts, Ipsets, Iptables, Sysctls
from kube_router_py.problem import Problem
from kube_router_py.proxy.masquerade import TABLE, Masquerade, compile_masquerade
from kube_router_py.proxy.settings import ProxyOptions, ThisNode
from kube_router_py.proxy.sysctls import Sysctl, sysctls

_log = logging.getLogger(__name__)


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """(major, minor) of the running kernel; (0, 0) if its release cannot be read."""
    numbers = (release or os.uname().release).replace("-", ".").split(".")
    try:
        return int(numbers[0]), int(numbers[1])
    except (ValueError, IndexError):
        return 0, 0


def settle_sysctls(
    port: Sysctls, wanted: Iterable[Sysctl], node_name: str
) -> tuple[list[Problem], list[Problem]]:
    """Set what differs; returns what the kernel lacks or refuses, and what it had better have."""
    problems: list[Problem] = []
    advice: list[Problem] = []
    for sysctl in wanted:
        try:
            found = port.read(sysctl.name)
            if found is None:
                if sysctl.advice:
                    advice.append(Problem(f"Node {node_name}", sysctl.name, sysctl.advice))
                elif not sysctl.is_optional:
                    reason = "the kernel has no such parameter; is its module loaded?"
                    problems.append(Problem(f"Node {node_name}", sysctl.name, reason))
            elif found != sysctl.value and sysctl.only_from in (None, found):
                port.write(sysctl.name, sysctl.value)
                _log.info("set sysctl=%s from=%s to=%s", sysctl.name, found, sysctl.value)
        except KernelError as error:
            problems.append(Problem(f"Node {node_name}", sysctl.name, str(error)))
    return problems, advice


def settle_masquerade(
    ipsets: Ipsets, iptables: Iptables, wanted: Iterable[Masquerade], node_name: str
) -> list[Problem]:
    """Make sets and rules stand, the set before the rule that names it; returns what failed."""
    problems: list[Problem] = []
    for family in wanted:
        try:
            ipsets.ensure(family.set, family.entries)
            for change in iptables.ensure(family.family, TABLE, family.rules):
                _log.info("source NAT family=%s change=%r", family.family, change)
        except KernelError as error:
            problems.append(
                Problem(f"Node {node_name}", "", f"source NAT ({family.family}): {error}")
            )
    return problems


def settle_host(
    ports: HostPorts, node: ThisNode, options: ProxyOptions
) -> tuple[tuple[Problem, ...], bool]:
    """Kernel parameters, VIP link, source NAT; returns what is wrong, and whether all of it that
    is in our hands stands."""
    ports.links.ensure_vip_link()
    addresses = set(node.addresses.values())
    links = {each.link for each in ports.links.node_addresses() if each.address in addresses}
    wanted = sysctls(options, links, kernel_version())
    problems, advice = settle_sysctls(ports.sysctls, wanted, node.name)
    if not node.addresses:
        # The Node is not there yet, or says nothing: rules from before the start are kept.
        return (*problems, *advice), not problems
    try:
        random_fully = ports.iptables.random_fully()
    except KernelError as error:
        problems.append(Problem(f"Node {node.name}", "", f"source NAT: {error}"))
        return (*problems, *advice), False
    masquerade, incomplete = compile_masquerade(node, options, random_fully=random_fully)
    problems += settle_masquerade(ports.ipsets, ports.iptables, masquerade, node.name)
    return (*problems, *advice, *incomplete), not problems

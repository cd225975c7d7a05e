"""Who else programs this node, or did: kube-proxy, kube-router, another CNI. Pure."""

import re
from collections.abc import Iterable, Iterator

from kube_router_py.doctor.findings import WARNING, Finding, found
from kube_router_py.options import Options

# Links and chains that others make, as their sources name them.
_LINKS = {
    "flannel": r"flannel[.\-]\S+|flannel0",
    "Calico": r"cali[0-9a-f]{11}|vxlan(-v6)?\.calico|wireguard\.cali|wg-v6\.cali|bpf(in|out)\.cali",
    "Cilium": r"cilium_(host|net|vxlan|geneve|wg0)|lxc_health",
    "Weave": r"weave|vxlan-6784|datapath|vethwe-\S+",
    "Antrea": r"antrea-(gw|tun|ingress|egress)0",
    "OVN": r"ovn-k8s-mp0|ovn0",
}
_CHAINS = {
    "flannel": r"FLANNEL-(FWD|POSTRTG)",
    "Calico": r"cali-\S+",
    "Cilium": r"(OLD_)?CILIUM_\S+",
    "Weave": r"WEAVE(-\S+)?",
    "Antrea": r"ANTREA-\S+",
}
# Bridges of container engines and virtual machines: no pod, Service or node is behind them.
_BRIDGE = re.compile(
    r"docker\d+|docker_gwbridge|br-[0-9a-f]{12}|podman\d+|cni-podman\d+|nerdctl\d+"
    r"|virbr\d+(-nic)?|lxcbr\d+|lxdbr\d+|incusbr\d+"
)
# Nodes may reach each other through it, but a rule for it alone leaves the other links alone.
_TAILNET = re.compile(r"tailscale\d+")
_POLICY_CHAINS = re.compile(r"cali-\S+|(OLD_)?CILIUM_\S+|WEAVE-NPC\S*|KUBE-NETPOL\S*")


def is_elsewhere(link: str, *, is_negated: bool) -> bool:
    """Whether a rule for packets of this link (``is_negated``: to addresses behind it that come by
    any other) concerns nothing of the cluster's."""
    if _BRIDGE.fullmatch(link):
        return True
    return not is_negated and _TAILNET.fullmatch(link) is not None


def is_policy_chain(name: str) -> bool:
    """Whether another program that enforces NetworkPolicies has made a chain of this name."""
    return _POLICY_CHAINS.fullmatch(name) is not None


def kube_proxy(mode: str | None, left: Iterable[str], options: Options) -> Iterator[Finding]:
    """``mode``: of the kube-proxy that runs, None if none does; ``left``: what it left, in
    words."""
    if not options.run_service_proxy:
        return
    if mode is not None:
        yield found(
            "kube-proxy-running",
            "kube-proxy",
            f"it runs on this node (mode {mode}) and programs the same Services",
            "remove it: kubectl -n kube-system delete daemonset kube-proxy (k3s, RKE2: "
            "--disable-kube-proxy)",
            # The agent works beside these two, and waits for the other to be gone.
            WARNING if mode in ("iptables", "nftables") else "",
        )
        return
    if what := tuple(left):
        yield found(
            "kube-proxy-leftovers",
            "kube-proxy",
            f"it does not run, but left {', '.join(what)}: packets are led past the agent",
            "kube-router-py cleanup --kube-proxy-leftovers",
        )


def kube_router(left: Iterable[str]) -> Iterator[Finding]:
    if what := tuple(left):
        yield found(
            "kube-router-leftovers",
            "kube-router",
            f"it left {', '.join(what)}",
            "restart the agent, which removes them once all is programmed, or run kube-router "
            "--cleanup-config with kube-router stopped",
        )


def other_cni(links: Iterable[str], chains: Iterable[str], options: Options) -> Iterator[Finding]:
    """What another pod network made. Beside ours (--run-router) it leads packets astray; where it
    is the cluster's, only a second one that enforces policies is too many."""
    links, chains = tuple(links), tuple(dict.fromkeys(chains))
    if options.run_router and options.enable_cni:
        for name in _LINKS:
            made = [each for each in links if re.fullmatch(_LINKS[name], each)]
            pattern = _CHAINS.get(name)
            made += [each for each in chains if pattern and re.fullmatch(pattern, each)]
            if made:
                yield found(
                    "other-cni",
                    name,
                    f"it runs here or has left {_named(made)}",
                    f"remove {name} from the cluster, then what it left (ip link delete LINK; "
                    "reboot the node to be sure)",
                )
    elif options.run_firewall:
        made = [each for each in chains if is_policy_chain(each)]
        if made:
            yield found(
                "other-policy-engine",
                "NetworkPolicy",
                f"somebody else enforces policies here, or did: chains {_named(made)}",
                "let one of them do it: --run-firewall=false, or switch the other's policies off",
            )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

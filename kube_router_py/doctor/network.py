"""MTUs along the overlay, and the CNI configuration. Pure."""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from msgspec import DecodeError, Struct, json

from kube_router_py.cluster.node import NodeView
from kube_router_py.doctor.findings import NOTE, WARNING, Finding, found
from kube_router_py.kernel.overlay_ports import Encap
from kube_router_py.options import Options
from kube_router_py.routing.cni import BRIDGE, compile_cni
from kube_router_py.routing.mtu import overhead, tunnel_mtu

_SUFFIXES = (".conf", ".conflist", ".json")
_TUNNEL_KINDS = ("ipip", "ip6tnl", "sit", "vxlan")
_OURS = ("tun-", "kube-")


class Link(Struct, frozen=True):
    """``master`` is the name of the bridge it is a port of; ``addresses`` without lengths,
    ``networks`` those that are reached through it directly."""

    name: str
    mtu: int
    kind: str = ""
    master: str = ""
    addresses: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


def needs_tunnels(
    links: Iterable[Link], view: NodeView, nodes: Iterable[NodeView], options: Options
) -> bool:
    """Whether some other node is behind a tunnel."""
    if not options.run_router or not options.enable_overlay:
        return False
    near = [ipaddress.ip_network(text, strict=False) for link in links for text in link.networks]
    others = [node for node in nodes if node.name != view.name]
    if options.overlay_type == "full":
        return bool(others)
    return any(
        not any(address.version == each.version and address in each for each in near)
        for node in others
        for address in (node.ipv4, node.ipv6)
        if address is not None
    )


def node_mtus(links: Iterable[Link], view: NodeView) -> dict[int, int]:
    """The MTU of the links that carry the node's addresses, by IP version; the smallest counts."""
    own = {str(each) for each in view.addresses}
    found_: dict[int, int] = {}
    for link in links:
        for text in own.intersection(link.addresses):
            version = ipaddress.ip_address(text).version
            found_[version] = min(link.mtu, found_.get(version, link.mtu))
    return found_


def mtus(
    links: Iterable[Link], view: NodeView, nodes: Iterable[NodeView], options: Options
) -> Iterator[Finding]:
    """Nothing may be larger than what carries it. Where tunnels are allowed and none is needed
    today, room that only they would take is noted."""
    links = tuple(links)
    by_version = node_mtus(links, view)
    if not by_version or not options.run_router:
        return
    encap = Encap(options.overlay_encap)
    tunnels = options.enable_overlay
    room = min(
        mtu - (overhead(encap, version) if tunnels else 0) for version, mtu in by_version.items()
    )
    room = max(room, 1280 if options.enable_ipv6 else 576)
    # Up to here packets still pass as long as no node is behind a tunnel.
    passes = 0 if needs_tunnels(links, view, nodes, options) else min(by_version.values())
    why = (
        f"the node's link carries {min(by_version.values())} bytes"
        + (f", of which {options.overlay_encap} tunnels take their part" if tunnels else "")
        + f", so that {room} are left"
    )
    remedy = (
        f"let --auto-mtu=true choose it, or set it to {room}; pods keep theirs until they are "
        "made anew"
    )
    ports: list[Link] = []
    for link in links:
        if link.name == BRIDGE and link.mtu > room:
            text = f"its MTU is {link.mtu}; {why}: larger packets do not fit"
            weight = NOTE if link.mtu <= passes else ""
            yield found("mtu-too-large", f"link {link.name}", text, remedy, weight)
        elif link.master == BRIDGE and link.mtu > room:
            ports.append(link)
        elif link.name.startswith(_OURS) and link.kind in _TUNNEL_KINDS:
            version = 6 if link.kind == "ip6tnl" else 4
            fits = tunnel_mtu(by_version.get(version, min(by_version.values())), encap, version)
            if link.mtu > fits:
                text = f"the tunnel's MTU is {link.mtu}, {fits} fit into the link below it"
                yield found("mtu-too-large", f"link {link.name}", text, f"set it to {fits}")
    if ports:
        named = ", ".join(each.name for each in ports[:3])
        largest = max(each.mtu for each in ports)
        text = f"{len(ports)} pods have an MTU of up to {largest}; {why}"
        weight = NOTE if largest <= passes else ""
        yield found("mtu-too-large", f"pods at {named}", text, remedy, weight)


def paths(cached: Mapping[str, int], links: Iterable[Link], nodes: Iterable[NodeView],
          view: NodeView) -> Iterator[Finding]:  # fmt: skip
    """``cached``: path MTUs that the kernel has learned, by destination (routes with an
    expiry)."""
    by_version = node_mtus(links, view)
    for node in nodes:
        for address in node.addresses:
            mtu = cached.get(str(address))
            if mtu is not None and mtu < by_version.get(address.version, 0):
                yield found(
                    "path-mtu-small",
                    f"Node {node.name}",
                    f"on the way to {address} only {mtu} bytes fit, fewer than this node's link "
                    "carries",
                    "find the link in between that is smaller, or set the MTU of the nodes' links "
                    f"to {mtu}",
                )


class CniFiles(Struct, frozen=True):
    """``path`` of ours and its ``text`` (None: there is no file), the ``names`` in its directory,
    ``plugins`` that are installed (None where that cannot be seen from here), the names that are
    ``multus``'s."""

    path: str
    text: str | None
    names: tuple[str, ...] = ()
    plugins: frozenset[str] | None = None
    multus: frozenset[str] = frozenset()


def cni(files: CniFiles, view: NodeView | None, options: Options) -> Iterator[Finding]:
    """Ours is there, is read, and says what the Node says."""
    if not (options.run_router and options.enable_cni):
        return
    where = f"File {files.path}"
    name = files.path.rpartition("/")[2]
    # Multus, which comes first, has the next one used.
    for other in sorted({*files.names} - files.multus):
        if other < name and other.endswith(_SUFFIXES):
            yield found(
                "cni-shadowed",
                where,
                f"container runtimes use {other} instead, which comes before it",
                "remove that file with the CNI that it belongs to, or let --cni-conf-file name it",
            )
    cidrs = [
        each
        for each in (view.pod_cidrs if view else ())
        if (options.enable_ipv4 if each.version == 4 else options.enable_ipv6)
    ]
    if files.text is None:
        if cidrs:
            yield found(
                "cni-missing",
                where,
                "it is not there: pods of this node get no network",
                "mount the node's directory of this name into the agent's container, writable; "
                "the agent makes the file",
            )
        return
    try:
        plugins = _types(files.text)
    except ValueError as error:
        yield found(
            "cni-invalid",
            where,
            f"it is no CNI configuration: {error}",
            "correct it, or remove it: the agent makes a new one",
        )
        return
    if cidrs:
        change = compile_cni(files.text, files.path, view.name if view else "", cidrs, None)
        if change.text is not None:
            yield found(
                "cni-stale",
                where,
                f"its subnets are not the Node's pod CIDRs ({', '.join(map(str, cidrs))}): new "
                "pods get addresses that lead elsewhere",
                "restart the agent, which writes it anew; is it writable?",
            )
        elif change.problems:
            text = "; ".join(each.reason for each in change.problems)
            yield found("cni-invalid", where, text, "correct the file", WARNING)
    if files.plugins is not None:
        missing = sorted(set(plugins) - files.plugins)
        if missing:
            yield found(
                "cni-plugin-missing",
                "/opt/cni/bin",
                f"CNI plugins that {name} asks for are not there: {', '.join(missing)}",
                "install them (package containernetworking-plugins), or run kube-router-py "
                "install-cni on this node",
            )


def _types(text: str) -> list[str]:
    """The plugins that a configuration asks for, IPAM included. Raises ValueError."""
    try:
        found_ = json.decode(text)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    if not isinstance(found_, dict):
        raise ValueError("it holds no JSON object")
    plugins = found_.get("plugins", [found_])
    if not isinstance(plugins, list) or not plugins:
        raise ValueError("it has no plugins")
    types: list[str] = []
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind:
            raise ValueError("a plugin has no type")
        types.append(kind)
        ipam = plugin.get("ipam")
        if isinstance(ipam, dict) and isinstance(ipam.get("type"), str):
            types.append(ipam["type"])
    return types

"""The CNI configuration of this node: its pod CIDRs and MTU written into what is there. Pure.

A file is a network configuration (``*.conf``) or a list of plugins (``*.conflist``) with a plugin
``bridge`` whose addresses come from ``host-local`` (CNI specification 1.0.0; the plugins' own
documentation). Of these two, ``mtu`` and the subnets are ours; all the rest is the operator's and
stays as it is, in its order.

host-local gives a pod an address out of each *range set*; so there is one set for each family. A
range with a subnet inside a pod CIDR of the node is the operator's choice of a part of it. Ranges
outside of all of them are stale, and go: their addresses lead to another node, if anywhere.
"""

import json
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Any

from msgspec import Struct

from kube_router_py.problem import Problem
from kube_router_py.routing.model import Network

BRIDGE = "kube-bridge"

Object = dict[str, Any]

# What host-local lets stand beside ``subnet`` in its first, older form (its Range type).
_OF_RANGE = ("subnet", "rangeStart", "rangeEnd", "gateway")


class CniChange(Struct, frozen=True):
    """What the file is to hold: ``text``, or None where it stays as it is, or is not made."""

    text: str | None
    problems: tuple[Problem, ...] = ()


def compile_cni(
    text: str | None,
    path: str,
    node_name: str,
    cidrs: Sequence[Network],
    mtu: int | None,
    template: str | None = None,
) -> CniChange:
    """Merge pod CIDRs (of the enabled families) and MTU (None: not ours) into a configuration.

    ``text`` is what the file holds, None where there is no file: then it is made from ``template``,
    or without one a plain configuration, a list if ``path`` ends in ``.conflist``.
    """
    if not cidrs:
        reason = (
            f"the node has no pod CIDR yet: {path} is left as it is, and new pods get no network. "
            "Have the controller manager allocate one (--allocate-node-cidrs), or set the "
            "annotation kube-router.io/pod-cidrs"
        )
        return CniChange(None, (Problem(f"Node {node_name}", "spec.podCIDRs", reason),))
    if text is None and template is None:
        return CniChange(_dump(_fresh(path, cidrs, mtu)))
    try:
        found = _load((template or "") if text is None else text)
        merged, advice = _merge(found, cidrs, mtu)
        written = None if merged == found and text is not None else _dump(merged)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        if text is None:
            reason = f"its template: {reason}; the file is not made, and pods get no network"
        else:
            reason = f"{reason}; it is left as it is"
        return CniChange(None, (Problem(f"Node {node_name}", path, reason),))
    return CniChange(written, tuple(Problem(f"Node {node_name}", path, each) for each in advice))


def _load(text: str) -> Object:
    """Raises ValueError, telling what is wrong."""

    def unique(pairs: list[tuple[str, Any]]) -> Object:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no JSON")

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def _dump(found: Object) -> str:
    """Raises ValueError for what JSON can say, but no number of ours (1e999)."""
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which came as an escape
        return json.dumps(found, indent=2, allow_nan=False) + "\n"
    return text


def _fresh(path: str, cidrs: Sequence[Network], mtu: int | None) -> Object:
    """What kube-router's own manifests install."""
    network: Object = {"cniVersion": "0.3.1", "name": "kubernetes"}
    bridge: Object = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local"},
    }
    bridge, _ = _with_subnets(bridge, cidrs)
    if mtu is not None:
        bridge["mtu"] = mtu
    if not path.endswith(".conflist"):
        return {**network, **bridge}
    portmap = {"type": "portmap", "capabilities": {"snat": True, "portMappings": True}}
    return {**network, "plugins": [bridge, portmap]}


def _merge(
    found: Object, cidrs: Sequence[Network], mtu: int | None
) -> tuple[Object, tuple[str, ...]]:
    """The configuration with what is ours, and what to tell. Raises ValueError."""
    plugins = found.get("plugins")
    if plugins is None:
        if found.get("type") != "bridge":
            raise ValueError("its type is not bridge")
        return _with_ours(found, cidrs, mtu)
    if not isinstance(plugins, list):
        raise ValueError("its plugins are no list")
    for position, plugin in enumerate(plugins):
        if isinstance(plugin, dict) and plugin.get("type") == "bridge":
            ours, advice = _with_ours(plugin, cidrs, mtu)
            return {
                **found,
                "plugins": [*plugins[:position], ours, *plugins[position + 1 :]],
            }, advice
    raise ValueError("it has no plugin of type bridge")


def _with_ours(
    plugin: Object, cidrs: Sequence[Network], mtu: int | None
) -> tuple[Object, tuple[str, ...]]:
    merged, advice = _with_subnets(plugin, cidrs)
    if mtu is not None:
        merged["mtu"] = mtu
    return merged, advice


def _with_subnets(plugin: Object, cidrs: Sequence[Network]) -> tuple[Object, tuple[str, ...]]:
    ipam = plugin.get("ipam", {"type": "host-local"})
    if not isinstance(ipam, dict):
        raise ValueError("its ipam is no object")
    kind = ipam.get("type", "host-local")
    if kind != "host-local":
        advice = f"its addresses come from {kind!r}, not host-local: no pod CIDRs are written there"
        return dict(plugin), (advice,)
    sets = _range_sets(ipam)
    kept = [wanted for each in sets if (wanted := [it for it in each if _is_of(it, cidrs)])]
    for cidr in cidrs:
        if any(_is_of(it, (cidr,)) for each in kept for it in each):
            continue
        beside = next((it for it in kept if _subnet(it[0]).version == cidr.version), None)
        if beside is None:
            kept.append([{"subnet": str(cidr)}])
        else:
            beside.append({"subnet": str(cidr)})
    folded = _OF_RANGE if "subnet" in ipam else ()
    changed = {name: value for name, value in ipam.items() if name not in folded}
    if "type" not in changed:
        changed = {"type": kind, **changed}
    return {**plugin, "ipam": {**changed, "ranges": kept}}, ()


def _range_sets(ipam: Object) -> list[list[Object]]:
    """All ranges, as host-local reads them: ``subnet`` comes before ``ranges``."""
    found: list[list[Object]] = []
    if "subnet" in ipam:
        found.append([{name: ipam[name] for name in _OF_RANGE if name in ipam}])
    ranges = ipam.get("ranges")
    if ranges is None:
        return found
    if not isinstance(ranges, list) or not all(map(_is_range_set, ranges)):
        raise ValueError("its ipam.ranges is no list of lists of objects")
    return found + ranges


def _is_range_set(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(each, dict) for each in found)


def _subnet(entry: Object) -> Network:
    text = entry.get("subnet")
    if not isinstance(text, str):
        raise ValueError(f"a range has the subnet {text!r}")
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"a range has the subnet {text!r}, which is no CIDR") from None


def _is_of(entry: Object, cidrs: Iterable[Network]) -> bool:
    """Whether the addresses of a range are in one of the pod CIDRs."""
    subnet = _subnet(entry)
    return any(
        subnet.version == cidr.version
        and subnet.prefixlen >= cidr.prefixlen
        and subnet.network_address in cidr
        for cidr in cidrs
    )

"""Wiring pods with the real CNI plugins, as a container runtime calls them.

Source: CNI specification 1.0.0. A node's configuration is a file in its own ``net.d`` directory and
is read anew for each pod, so that whoever rewrites it there is obeyed.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kube_router_py.lab.errors import LabError
from kube_router_py.lab.netns import Namespaces

Object = dict[str, Any]

PLUGIN_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
PLUGINS = ("bridge", "host-local", "portmap")
BRIDGE = "kube-bridge"


def plugin_directory() -> Path:
    """Where the plugins are. Raises LabError with the remedy."""
    for directory in PLUGIN_DIRECTORIES:
        if all((directory / name).exists() for name in PLUGINS):
            return directory
    raise LabError(
        f"CNI plugins {', '.join(PLUGINS)} not found in "
        f"{' or '.join(str(d) for d in PLUGIN_DIRECTORIES)}: "
        "apt-get install containernetworking-plugins"
    )


def render_network(pod_cidrs: Sequence[str]) -> Object:
    """A node's network configuration list, where its agent does not write one. Pure."""
    return {
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isDefaultGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": cidr}] for cidr in pod_cidrs],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _configurations(directory: Path) -> list[Path]:
    return sorted([*directory.glob("*.conflist"), *directory.glob("*.conf")])


def read_network(directory: Path) -> Object:
    """The first configuration in ``directory`` by name. Raises LabError."""
    files = _configurations(directory)
    if not files:
        raise LabError(f"no CNI configuration in {directory}")
    try:
        found = json.loads(files[0].read_text())
    except ValueError as error:
        raise LabError(f"{files[0]}: {error}") from error
    if "plugins" in found:
        return dict(found)
    return {"cniVersion": found.get("cniVersion"), "name": found.get("name"), "plugins": [found]}


class Wiring:
    """ADD and DEL of one node's pods; every method blocks and belongs into the thread pool.

    ``data``: what host-local has at its usual place on a machine that is one node only.
    """

    def __init__(self, namespaces: Namespaces, node: str, configuration: Path, data: Path) -> None:
        self._namespaces = namespaces
        self._node = node
        self._configuration = configuration
        self._data = data
        self._plugins = plugin_directory()

    @property
    def is_configured(self) -> bool:
        """Whether the node has a network for its pods yet."""
        return bool(_configurations(self._configuration))

    def add(self, container: str, netns: Path, host_ports: Sequence[Object]) -> list[str]:
        """Connect a namespace; returns its addresses. Raises LabError."""
        network = read_network(self._configuration)
        result: Object | None = None
        for plugin in network["plugins"]:
            if self._is_needed(plugin, host_ports):
                conf = _plugin_conf(network, plugin, host_ports, result, self._data)
                result = json.loads(self._call("ADD", container, netns, conf))
        addresses = (result or {}).get("ips") or []
        return [str(entry["address"]).split("/")[0] for entry in addresses]

    def delete(self, container: str, netns: Path, host_ports: Sequence[Object]) -> None:
        """Undo ADD, plugins in reverse order; harmless when there was none."""
        network = read_network(self._configuration)
        for plugin in reversed(network["plugins"]):
            if self._is_needed(plugin, host_ports):
                conf = _plugin_conf(network, plugin, host_ports, None, self._data)
                self._call("DEL", container, netns, conf)

    @staticmethod
    def _is_needed(plugin: Object, host_ports: Sequence[Object]) -> bool:
        # portmap without mappings only passes its input on; that costs an exec for each pod.
        return plugin["type"] != "portmap" or bool(host_ports)

    def _call(self, verb: str, container: str, netns: Path, conf: Object) -> str:
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(netns),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._plugins),
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        }
        program = str(self._plugins / conf["type"])
        try:
            return self._namespaces.run(self._node, [program], stdin=json.dumps(conf), env=env)
        except LabError as error:
            raise LabError(f"CNI {verb} of {container} on {self._node}: {error}") from error


def _plugin_conf(
    network: Object,
    plugin: Object,
    host_ports: Sequence[Object],
    previous: Object | None,
    data: Path,
) -> Object:
    conf = {**plugin, "cniVersion": network["cniVersion"], "name": network["name"]}
    capabilities = conf.pop("capabilities", {})
    if capabilities.get("portMappings"):
        conf["runtimeConfig"] = {"portMappings": list(host_ports)}
    if "ipam" in conf:
        conf["ipam"] = {"dataDir": str(data), **conf["ipam"]}
    if previous is not None:
        conf["prevResult"] = previous
    return conf

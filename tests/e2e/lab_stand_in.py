"""Without IPVS: rules of iptables in the service proxy's place, which follow nothing.

They let the rest be tried natively, ten to twenty times as fast as in a VM: who has an address,
how soon another node has it, and that requests go on meanwhile.
"""

from typing import Any


def is_needed(cluster: Any) -> bool:
    """Whether the agents run no service proxy (as they cannot without IPVS)."""
    return "service-proxy" not in cluster.ready("node1")["loops"]


def lay(cluster: Any, nodes: tuple[str, ...], services: dict[str, dict[int, str]]) -> None:
    """Lead what comes to each node for Services to the endpoints that they have now."""
    pods = cluster.api.get("/api/v1/namespaces/e2e/pods")["items"]
    for node in nodes:
        for family in (4, 6):
            lines = ["*nat"]
            for name, addresses in services.items():
                spec = cluster.api.get(f"/api/v1/namespaces/e2e/services/{name}")["spec"]
                backends = [
                    address["ip"]
                    for pod in pods
                    if spec["selector"].items() <= pod["metadata"]["labels"].items()
                    and (
                        spec["externalTrafficPolicy"] == "Cluster"
                        or pod["spec"]["nodeName"] == node
                    )
                    for address in pod["status"]["podIPs"]
                    if (":" in address["ip"]) == (family == 6)
                ]
                for port in spec["ports"]:
                    lines += _rules(addresses[family], port, backends)
            lines += ["-A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE", "COMMIT", ""]
            program = "ip6tables-restore" if family == 6 else "iptables-restore"
            text = "\n".join(lines)
            cluster.run(node, "sh", "-c", f"{program} --noflush <<'END'\n{text}END\n")


def _rules(address: str, port: dict[str, Any], backends: list[str]) -> list[str]:
    found = []
    for index, backend in enumerate(backends):
        left = len(backends) - index
        target = f"[{backend}]" if ":" in backend else backend
        chance = f"-m statistic --mode nth --every {left} --packet 0 " if left > 1 else ""
        protocol = port["protocol"].lower()
        found.append(
            f"-A PREROUTING -d {address} -p {protocol} --dport {port['port']} {chance}"
            f"-j DNAT --to-destination {target}:{port['targetPort']}"
        )
    return found

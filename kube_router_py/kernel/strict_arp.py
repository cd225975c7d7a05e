"""Whether the kernel answers ARP for addresses of Services that another proxy has put on a link.

kube-proxy in IPVS mode has the LB IPs of all Services on a link of every node. With arp_ignore=0
(kernel Documentation/networking/ip-sysctl.rst) the kernel answers for them on any other link, so
that all nodes do; kube-proxy's --ipvs-strict-arp sets it, as this agent's own proxy does.
"""

from pathlib import Path

_LINK = "kube-ipvs0"


def strict_arp_mistake(proc: Path = Path("/proc")) -> str:
    """What is wrong in the network namespace of the calling thread, or ``""``."""
    try:
        links = (proc / "thread-self/net/dev").read_text()
        setting = (proc / "sys/net/ipv4/conf/all/arp_ignore").read_text().strip()
    except OSError:
        return ""
    if setting != "0" or not any(
        line.strip().startswith(f"{_LINK}:") for line in links.split("\n")
    ):
        return ""
    return (
        f"kube-proxy has the addresses of Services on {_LINK}, and net.ipv4.conf.all.arp_ignore is "
        "0: every node's kernel answers ARP for them; set strictARP in kube-proxy's configuration"
    )

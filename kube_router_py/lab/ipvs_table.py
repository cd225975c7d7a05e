"""What the kernel says about IPVS in a namespace: parsed from /proc, for checks. Pure.

Formats: net/netfilter/ipvs/ip_vs_ctl.c (ip_vs_info_seq_show) and ip_vs_conn.c
(ip_vs_conn_seq_show), Linux 6.1: addresses and ports in hexadecimal, IPv6 in brackets.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address


def _address(text: str) -> str:
    if ":" in text:
        return str(ip_address(text.strip("[]")))
    return str(IPv4Address(int(text, 16)))


def _endpoint(text: str) -> str:
    host, _, port = text.rpartition(":")
    address = _address(host)
    return f"[{address}]:{int(port, 16)}" if ":" in address else f"{address}:{int(port, 16)}"


@dataclass(frozen=True)
class Connection:
    """One entry of the connection table: who, to which virtual server, on which real server."""

    protocol: str
    client: str
    virtual_server: str
    real_server: str
    state: str


def parse_table(text: str) -> dict[str, dict[str, int]]:
    """``/proc/net/ip_vs``: ``TCP 10.96.0.10:80`` to ``{real server: weight}``."""
    table: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in text.splitlines()[3:]:
        words = line.split()
        if words[0] == "->":
            current[_endpoint(words[1])] = int(words[3])
        elif words[0] == "FWM":
            current = table[f"FWM {int(words[1], 16)}"] = {}
        else:
            current = table[f"{words[0]} {_endpoint(words[1])}"] = {}
    return table


def parse_connections(text: str) -> list[Connection]:
    """``/proc/net/ip_vs_conn``."""
    found = []
    for line in text.splitlines()[1:]:
        protocol, client, client_port, virtual, virtual_port, real, real_port, state = line.split()[
            :8
        ]
        found.append(
            Connection(
                protocol=protocol,
                client=_endpoint(f"{client}:{client_port}"),
                virtual_server=_endpoint(f"{virtual}:{virtual_port}"),
                real_server=_endpoint(f"{real}:{real_port}"),
                state=state,
            )
        )
    return found

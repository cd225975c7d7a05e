"""Reading IPVS's own tables, and printing the API's."""

from kube_router_py.lab.ipvs_table import parse_connections, parse_table
from kube_router_py.lab.tour_api import render_table

TABLE = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:0050 rr persistent 60000 FFFFFFFF
  -> 0AF40103:1F90      Masq    1      0          0
  -> 0AF40202:1F90      Masq    0      2          1
UDP  [fd10:0096:0000:0000:0000:0000:0000:000a]:0035 rr
  -> [fd10:0244:0000:0001:0000:0000:0000:0002]:0035      Masq    1      0          0
FWM  00000001 rr
"""

CONNECTIONS = """\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A140002 D431 0A0A000B 7580 0AF40103 1F90 ESTABLISHED     899
"""


def test_the_table() -> None:
    assert parse_table(TABLE) == {
        "TCP 10.96.0.10:80": {"10.244.1.3:8080": 1, "10.244.2.2:8080": 0},
        "UDP [fd10:96::a]:53": {"[fd10:244:0:1::2]:53": 1},
        "FWM 1": {},
    }


def test_the_connections() -> None:
    (found,) = parse_connections(CONNECTIONS)
    assert (found.client, found.virtual_server) == ("10.20.0.2:54321", "10.10.0.11:30080")
    assert (found.real_server, found.state) == ("10.244.1.3:8080", "ESTABLISHED")


def test_a_table_of_the_api_is_aligned_and_leaves_wide_columns_out() -> None:
    table = {
        "columnDefinitions": [{"name": "Name"}, {"name": "Age"}, {"name": "IP", "priority": 1}],
        "rows": [{"cells": ["a", "1s", "x"]}, {"cells": ["longer", "12m", "y"]}],
    }
    assert render_table(table) == "NAME     AGE\na        1s\nlonger   12m\n"

"""``status --cluster``: what agents write of their nodes, and the table made of it."""

import re
from datetime import UTC, datetime
from typing import Any
from unittest.mock import Mock

import pytest
from msgspec import json

from kube_router_py import agent_parts
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.client import RefusedError
from kube_router_py.cluster.objects import Lease, LeaseSpec, Node, ObjectMeta
from kube_router_py.cluster_status import AGAIN, ANNOTATION, NAME_PREFIX, StatusWriter, rows
from kube_router_py.observe.summary import NodeSummary, decode, encode, summarize

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def status(**changes: Any) -> dict[str, Any]:
    neighbors = [{"state": "Established"}, {"state": "Active"}]
    return {
        "ready": True,
        "reason": "",
        "version": "1.2.3",
        "loops": {"firewall": {}, "router": {}},
        "service_proxy": {"virtual_servers": 5, "repaired": 4},
        "firewall": {"policy_chains": 7, "repaired": 2},
        "router": {"neighbors": neighbors, "announced_services": 3, "repaired": 1},
        "layer2": {"addresses": [{"answered_here": True}, {"answered_here": False}]},
        "problem_count": 4,
        **changes,
    }


def lease(name: str, text: str, renewed: str | None = "2026-01-31T11:59:50.5Z") -> Lease:
    meta = ObjectMeta(name=f"{NAME_PREFIX}{name}", annotations={ANNOTATION: text})
    return Lease(meta, LeaseSpec(renew_time=renewed, lease_duration_seconds=900))


class Server:
    """Leases as an API server keeps them."""

    def __init__(self) -> None:
        self.leases: dict[str, dict[str, Any]] = {}
        self.writes = 0

    def patch(self, path: str, body: dict[str, Any]) -> None:
        if path not in self.leases:
            raise RefusedError("no such Lease", 404, "NotFound", 0.0)
        self.writes += 1
        self.leases[path] = {**self.leases[path], **body}

    def post(self, path: str, body: dict[str, Any]) -> None:
        self.writes += 1
        self.leases[f"{path}/{body['metadata']['name']}"] = body


def test_a_summary_has_what_matters_and_is_small() -> None:
    summary = summarize(status())
    assert summary == NodeSummary(
        ready=True,
        version="1.2.3",
        virtual_servers=5,
        policy_chains=7,
        sessions=2,
        established=1,
        announced=3,
        answered=1,
        repaired=7,
        problems=4,
    )
    assert decode(encode(summary)) == summary
    long = summarize(status(ready=False, reason="€" * 10_000, problem_count=10**9))
    assert len(encode(long).encode()) < 1024
    odd = summarize(status(ready=False, reason="half a pair: \ud83d"))
    assert decode(encode(odd)) == odd
    deep = '{"more":' + "[" * 100_000
    for other in ("", "[]", "{", '{"ready": 3}', "\x00", deep, '{"version": "%s"}' % ("v" * 9999)):
        assert decode(other) is None
    for number in (10**30, 1 << 53, -1):  # such are no numbers of JSON, or not of anything
        assert decode(f'{{"problems": {number}}}') is None
        assert decode(f'{{"policy_chains": {number}}}') is None


def test_the_table_has_every_node_and_says_who_is_silent() -> None:
    well, ill = encode(summarize(status())), encode(summarize(status(ready=False, reason="why")))
    found = rows(
        ["a", "b", "c", "d", "e"],
        [
            lease("a", well),
            lease("b", ill),
            lease("c", well, "2026-01-31T11:00:00Z"),
            lease("d", "{"),
            lease("gone", well, None),
            Lease(ObjectMeta(name="another")),
        ],
        NOW,
    )
    table = {row["node"]: row for row in found}
    assert {name: row["state"] for name, row in table.items()} == {
        "a": "ready",
        "b": "not ready",
        "c": "silent",
        "d": "unreadable",
        "e": "no summary",
        "gone*": "silent",
    }
    assert (table["a"]["bgp"], table["a"]["seen_s"]) == ("1/2", 10)
    assert table["b"]["reason"] == "why"
    assert table["e"]["problems"] is None


def test_it_writes_what_is_new_and_now_and_then_what_is_not() -> None:
    server, nodes = Server(), Cache((Node,))
    nodes.replace(Node, [Node(ObjectMeta(name="n1", uid="u-1"))], "1")
    said = status()
    writer = StatusWriter(server, nodes, "kube-system", "n1", lambda: said, 60.0)  # type: ignore[arg-type]
    writer.write()
    ((path, found),) = server.leases.items()
    assert path.endswith(f"/namespaces/kube-system/leases/{NAME_PREFIX}n1")
    assert found["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert found["spec"]["leaseDurationSeconds"] == 270
    assert json.decode(found["metadata"]["annotations"][ANNOTATION])["problems"] == 4
    writer.write()
    assert server.writes == 1
    said["problem_count"] = 5
    writer.write()
    assert server.writes == 2
    for _ in range(AGAIN):
        writer.write()
    assert server.writes == 3


def test_it_writes_once_a_second_at_most() -> None:
    server, nodes = Server(), Cache((Node,))
    writer = StatusWriter(server, nodes, "kube-system", "n1", status, 0.001)  # type: ignore[arg-type]
    writer.write()
    ((_, found),) = server.leases.items()
    assert found["spec"]["leaseDurationSeconds"] == 5


@pytest.mark.parametrize("last", ["a", "b"])
@pytest.mark.parametrize("name", ["{}", "a.b-c.{}", "a" * 252 + "{}", "a." * 126 + "{}"])
def test_what_is_written_is_found_again(name: str, last: str) -> None:
    name = name.format(last)
    server, nodes = Server(), Cache((Node,))
    writer = StatusWriter(server, nodes, "kube-system", name, status, 60.0)  # type: ignore[arg-type]
    writer.write()
    ((path, found),) = server.leases.items()
    written = path.rpartition("/")[2]
    assert len(written) <= 253
    label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    assert re.fullmatch(rf"{label}(\.{label})*", written)
    annotations, holder = found["metadata"]["annotations"], found["spec"]["holderIdentity"]
    spec = LeaseSpec(holder, 900, None, "2026-01-31T11:59:50Z")
    read = Lease(ObjectMeta(name=written, annotations=annotations), spec)
    others = [name[:-1] + "c"] if len(name) > 200 else []
    table = {row["node"]: row["state"] for row in rows([name, *others], [read], NOW)}
    assert table == {name: "ready", **dict.fromkeys(others, "no summary")}


@pytest.mark.parametrize(
    ("renewed", "state"),
    [
        ("2026-01-31T12:00:50Z", "ready"),
        ("2026-01-31T12:02:00Z", "clock ahead"),
        ("2027-01-31T12:00:00Z", "clock ahead"),
        ("2026-01-31T13:00:00+01:00", "ready"),
        ("2026-01-31T12:00:00", "silent"),
        ("yesterday", "silent"),
    ],
)
def test_a_summary_from_the_future_does_not_hide_that_its_node_is_silent(
    renewed: str, state: str
) -> None:
    ((row),) = rows(["a"], [lease("a", encode(summarize(status())), renewed)], NOW)
    assert row["state"] == state


def test_a_part_that_cannot_tell_does_not_silence_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    part = Mock(**{"status.side_effect": KeyError("x"), "loop.name": "router"})
    broken = agent_parts._said(part)
    assert broken == {"failed": "KeyError('x')"}
    assert "loop=" in caplog.text
    summary = summarize(status(router=broken, layer2=broken, firewall=broken))
    assert (summary.ready, summary.problems, summary.announced) == (True, 4, None)

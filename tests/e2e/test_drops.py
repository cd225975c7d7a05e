"""What policies refuse is named: by the command of a node, while real packets are refused there.

x/a, y/a and y/c are on node1, x/b and y/b on node2; Service y/front is in front of y/b.
"""

import json
import queue
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from kube_router_py.agent_client import follow
from kube_router_py.errors import ApiError
from kube_router_py.kernel.nflog import NflogSocket

pytestmark = pytest.mark.e2e

COMMAND = ("kube-router-py", "drops", "--output=json")
NFLOG = "/proc/net/netfilter/nfnetlink_log"
DENY_INGRESS = {"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"]}
DENY_EGRESS = {"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"]}
# So that a pod's ten log lines are not used up by the time that somebody looks.
_TRY_S = 0.5


@pytest.fixture
def enforced(policies: Any) -> Iterator[Callable[..., None]]:
    """Has policies written and applied; at the end there are none."""

    def write(**specs: Any) -> None:
        found = {key.replace("_", "/"): spec for key, spec in specs.items()}
        policies.set(policies.state(found, {}))
        policies.cluster.wait()

    yield write
    write()


class Seen:
    """Lines of a command that follows, as they come."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._process = process
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        self.found: list[dict[str, Any]] = []

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    def one(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """A line like this, if there was one so far."""
        with suppress(queue.Empty):
            while True:
                self.found.append(self._lines.get(timeout=_TRY_S))
        return next((each for each in self.found if is_it(each)), None)

    def join(self) -> None:
        self._thread.join()


def is_read(cluster: Any, node: str) -> bool:
    return any(
        line.split()[0] == "100" for line in cluster.run(node, "cat", NFLOG).splitlines() if line
    )


@contextmanager
def following(cluster: Any, node: str, *flags: str) -> Iterator[Seen]:
    """A command that follows in a node, from when the agent reads."""
    argv = cluster.state.enter(node, (*COMMAND, "--follow", *flags))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        seen = Seen(process)
        try:
            cluster.eventually(lambda: is_read(cluster, node), f"the agent of {node} reads")
            yield seen
        finally:
            process.terminate()
            process.wait()
            seen.join()


def knock(cluster: Any, source: str, address: str, port: int, kind: int) -> None:
    """One new connection, or packet; what comes of it is for others to see."""
    with cluster.socket(source, 6 if ":" in address else 4, kind) as sock, suppress(OSError):
        sock.settimeout(2.0)
        sock.connect((address, port))
        sock.send(b"?")


def eventually_seen(
    cluster: Any,
    seen: Seen,
    is_it: Callable[[dict[str, Any]], bool],
    *attempt: Any,
) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        knock(cluster, *attempt)
        return seen.one(is_it)

    found: dict[str, Any] = cluster.eventually(look, f"a record of {attempt}")
    return found


@pytest.mark.parametrize(
    ("kind", "protocol"), [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")]
)
def test_ingress_is_named_on_the_destinations_node(
    cluster: Any, policies: Any, enforced: Callable[..., None], kind: int, protocol: str
) -> None:
    enforced(y_deny=DENY_INGRESS)
    with following(cluster, "node2") as seen:
        for address in policies.addresses["y/b"]:
            found = eventually_seen(
                *(cluster, seen),
                lambda each, address=address: (
                    each["destination"]["address"] == address and each["protocol"] == protocol
                ),
                *("x/a", address, 80, kind),
            )
            assert (found["node"], found["direction"]) == ("node2", "ingress")
            assert (found["verdict"], found["cause"]) == ("refused", "policy")
            assert found["source"]["pod"] == "x/a"
            assert found["source"]["node"] == "node1"
            assert found["destination"]["pod"] == found["pod"] == "y/b"
            assert found["destination"]["port"] == 80
            assert found["destination"]["services"] == ["y/front"]
            assert found["policies"] == ["y/deny"]


def test_egress_is_named_on_the_sources_node(
    cluster: Any, policies: Any, enforced: Callable[..., None]
) -> None:
    enforced(x_closed=DENY_EGRESS)
    outside = policies.addresses["apiserver"][0]
    with following(cluster, "node1") as seen:
        found = eventually_seen(
            *(cluster, seen),
            lambda each: each["destination"]["address"] == outside,
            *("x/a", outside, 6443, socket.SOCK_STREAM),
        )
        assert (found["direction"], found["pod"], found["policies"]) == (
            *("egress", "x/a", ["x/closed"]),
        )
        # What listens there is the endpoint of a Service.
        services = ["default/kubernetes"]
        assert found["destination"] == {"address": outside, "port": 6443, "services": services}


def test_other_namespaces_are_left_out(
    cluster: Any, policies: Any, enforced: Callable[..., None]
) -> None:
    enforced(x_closed=DENY_EGRESS, y_closed=DENY_EGRESS)
    outside = policies.addresses["apiserver"][0]
    with following(cluster, "node1", "--namespace=y") as seen:
        knock(cluster, "x/a", outside, 6443, socket.SOCK_STREAM)
        eventually_seen(
            *(cluster, seen),
            lambda each: each["pod"] == "y/a",
            *("y/a", outside, 6443, socket.SOCK_STREAM),
        )
        assert {each["pod"] for each in seen.found} == {"y/a"}


def test_behind_a_service_the_service_is_named(
    cluster: Any, policies: Any, enforced: Callable[..., None]
) -> None:
    """Through its ClusterIP, from a pod of the same node and of the other."""
    enforced(y_deny=DENY_INGRESS)
    service = cluster.api.get("/api/v1/namespaces/y/services/front")
    with following(cluster, "node2") as seen:
        for source in ("x/a", "x/b"):
            for address in service["spec"]["clusterIPs"]:
                found = eventually_seen(
                    *(cluster, seen),
                    lambda each, source=source, address=address: (
                        each["source"]["pod"] == source
                        and (":" in each["source"]["address"]) == (":" in address)
                    ),
                    *(source, address, 8080, socket.SOCK_STREAM),
                )
                assert found["destination"]["pod"] == "y/b"
                assert found["destination"]["services"] == ["y/front"]


def test_the_log_is_the_agents_only_while_somebody_follows(
    cluster: Any, policies: Any, enforced: Callable[..., None]
) -> None:
    """As tcpdump -i nflog:100 has it otherwise."""
    cluster.eventually(lambda: not is_read(cluster, "node1"), "nobody reads")
    path = str(cluster.state.agent_socket("node1"))
    with (
        closing(cluster.inside("node1", NflogSocket)),
        pytest.raises(ApiError, match="reads NFLOG group 100"),
    ):
        list(follow(path, "drops", {"for_s": 0}))
    with following(cluster, "node1"), pytest.raises(Exception, match="reads NFLOG group 100"):
        cluster.inside("node1", NflogSocket)
    cluster.eventually(lambda: not is_read(cluster, "node1"), "the agent gives the log back")
    assert list(follow(path, "drops", {"for_s": 0})) == [{"node": "node1"}, {"end": True}]
    enforced(x_closed=DENY_EGRESS)  # and the policies go on, whoever reads
    outside = policies.addresses["apiserver"][0]
    with cluster.socket("x/a", 6 if ":" in outside else 4, socket.SOCK_STREAM) as sock:
        sock.settimeout(20.0)
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            sock.connect((outside, 6443))

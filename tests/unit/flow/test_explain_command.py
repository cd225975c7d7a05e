"""``explain`` of Services: text, JSON, exit codes; asked of an agent and of an API server."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins

from kube_router_py import cli, explain_sources
from kube_router_py.cluster.client import RefusedError
from kube_router_py.cluster.decode import RESOURCES
from kube_router_py.errors import ConfigurationError
from kube_router_py.flow.model import Answer, Check, Comparison, Question
from kube_router_py.observe.agent_socket import AgentSocket

Run = Any


@pytest.fixture
def run(world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def explain(*arguments: str) -> tuple[int, str, str]:
        path = tmp_path / "world.json"
        items = list(world.documents.values())
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        code = cli.main(["explain", "-f", str(path), *arguments])
        found = capsys.readouterr()
        return code, found.out, found.err

    return explain


# --- text ----------------------------------------------------------------------------------------


def test_a_service_as_text(world: Any, run: Run) -> None:
    world.served()
    world.policy("x/closed", podSelector={"matchLabels": {"pod": "b"}}, policyTypes=["Ingress"])
    code, out, errors = run("x/client", "svc/x/web", "80/TCP")
    assert (code, errors) == (0, "")
    denied = "ingress of x/b: isolated by x/closed, no rule admits x/client on TCP 8080"
    assert out.splitlines()[:15] == [
        "partly: x/client -> svc/x/web TCP 80 (10.244.1.9 -> 10.96.0.1)",
        f"  1 of 3 backends of Service x/web cannot be reached: {denied}",
        "  from      pod x/client, 10.244.1.9, on node node1",
        "  to        ClusterIP of Service x/web, 10.96.0.1",
        "  service   x/web port 80/TCP (http), target port 8080",
        "  served    by IPVS on node node1: TCP 10.96.0.1:80 rr, policy Cluster",
        "  backends  ADDRESS      PORT  POD  NODE   WEIGHT      WHY",
        "            10.244.1.10  8080  x/a  node1  1       in  ready",
        "            10.244.2.10  8080  x/b  node2  1       in  ready",
        "            10.244.3.10  8080  x/c  node3  1       in  ready",
        # What does not get through comes first.
        "  to 10.244.2.10:8080 (x/b)",
        "  egress    allowed: not isolated",
        "  ingress   x/b: isolated by x/closed, no rule admits x/client on TCP 8080; judged on "
        "node node2",
        "  source    10.244.1.9 stays: replies come back through this node by themselves",
        "  route     direct via 192.168.1.2 (10.244.2.0/24): FRR learns it from node node2, in the "
        "same subnet",
    ]


def test_many_backends_are_cut_short(world: Any, run: Run, make_endpoint: Any) -> None:
    world.service("x/web", "10.96.0.1")
    listed = [make_endpoint("a", addresses=[f"10.244.1.{each}"]) for each in range(100, 150)]
    world.endpoints("x/web", *listed)
    _, out, _ = run("x/client", "x/web", "80")
    assert "            and 20 more (--output=json)" in out.splitlines()
    assert out.splitlines()[-1] == "  and to 42 more backends (--output=json)"
    assert out.count("\n  egress ") == 8
    _, out, _ = run("x/client", "x/web", "80", "-o", "json")
    assert len(json.loads(out)[0]["trace"]["backends"]) == 50


def test_what_strangers_wrote_does_nothing_to_a_terminal(world: Any, run: Run) -> None:
    world.served()
    code, out, _ = run("x/client", "svc/x/w\x1beb", "80")
    assert code == 1
    assert "\x1b" not in out
    assert out.splitlines() == [
        "cannot be judged: x/client -> svc/x/w\\x1beb TCP 80",
        "  to: there is no Service x/w\\x1beb; did you mean x/web?",
    ]


def test_halves_of_surrogate_pairs_do_not_get_to_the_output(
    run: Run, tmp_path: Path, agent: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    flows = tmp_path / "flows.json"
    flows.write_text('[{"from": "\\ud800/x", "to": "x/a", "port": 80, "protocol": "\\udfff"}]')
    code, out, _ = run("--flows", str(flows))
    assert code == 0
    assert "there is no pod \\ud800/x" in out
    _, out, _ = run("--flows", str(flows), "-o", "json")
    assert json.loads(out.encode())[0]["error"]
    _, out, _ = run("\udcff/x", "x/a", "80", "-o", "json")
    out.encode()
    agent.answer = to_builtins(Answer(error="no"))
    assert asked_of(agent, "\udcff/x", "\udcff/x", "80/\udcff", "--node=\udcff") == 1
    assert asked_of(agent, "--flows", str(flows)) == 0
    assert [each["source"] for each in agent.asked] == ["\\udcff/x", "\\ud800/x"]
    capsys.readouterr().out.encode()


def test_a_port_that_is_no_number_of_16_bits(
    agent: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flows = tmp_path / "flows.json"
    flow = {"from": "x/client", "to": "x/a", "port": 1 << 70, "protocol": "47"}
    flows.write_text(json.dumps([flow, flow | {"port": -1}]))
    assert asked_of(agent, "--flows", str(flows), "-o", "json") == 0
    errors = [each["error"] for each in json.loads(capsys.readouterr().out)]
    assert errors == [f"port {1 << 70} is not in 1..65535", "port -1 is not in 1..65535"]


def test_an_audited_direction_that_reasons_do_not_tell(world: Any, run: Run) -> None:
    world.policy("x/out", podSelector={"matchLabels": {"pod": "client"}}, policyTypes=["Egress"])
    world.policy("x/in", podSelector={"matchLabels": {"pod": "a"}}, policyTypes=["Ingress"])
    metadata = world.documents["NetworkPolicy", "x", "in"]["metadata"]
    metadata["annotations"] = {"kube-router.io/audit": "true"}
    _, out, _ = run("x/client", "x/a", "8080")
    assert "  ingress   allowed: audited by x/in, none admits it, it would be refused\n" in out
    rule = {"from": [{"podSelector": {}}]}
    world.documents["NetworkPolicy", "x", "in"]["spec"]["ingress"] = [rule]
    _, out, _ = run("x/client", "x/a", "8080")
    assert "  ingress   allowed: audited by x/in, rule 0 of x/in admits\n" in out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_on_terminals_only(world: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    world.served()
    _, plain, _ = run("x/client", "x/web", "80")
    assert "\x1b" not in plain
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    run("x/client", "x/web", "80")
    lines = screen.getvalue().splitlines()
    assert lines[0].startswith("\x1b[32mallowed\x1b[0m: x/client -> x/web")
    assert lines[2].startswith("  \x1b[1mfrom\x1b[0m      pod x/client")
    assert re.sub("\x1b\\[[0-9]*m", "", screen.getvalue()) == plain


# --- JSON and exit codes -------------------------------------------------------------------------


def test_a_service_as_json(world: Any, run: Run) -> None:
    world.served()
    world.policy("x/closed", podSelector={"matchLabels": {"pod": "b"}}, policyTypes=["Ingress"])
    code, out, _ = run("x/client", "svc/x/web", "80", "--output=json")
    (answer,) = json.loads(out)
    assert (code, answer["allowed"], answer["error"], answer["kernel"]) == (0, False, None, None)
    assert answer["ingress"] == {
        "isolated": True,
        "allowed": False,
        "policies": ["x/closed"],
        "decided_by": None,
    }
    assert answer["reason"].startswith("1 of 3 backends of Service x/web cannot be reached")
    trace = answer["trace"]
    assert (trace["outcome"], trace["service"]["server"]["scheduler"]) == ("partly", "rr")
    assert [each["path"]["allowed"] for each in trace["backends"]] == [True, False, True]


@pytest.mark.parametrize(
    ("target", "allowed", "outcome"),
    [
        ("x/web", True, "allowed"),
        ("x/none", False, "unreachable"),
        ("x/closed", False, "denied"),
        ("203.0.113.9", True, "allowed"),
    ],
)
def test_exit_code(target: str, allowed: bool, outcome: str, world: Any, run: Run) -> None:
    world.served()
    world.service("x/none", "10.96.0.9")
    world.pod("x/closed", "node1", "10.244.1.70")
    closed = {"matchLabels": {"pod": "closed"}}
    world.policy("x/closed", podSelector=closed, policyTypes=["Ingress"])
    code, out, _ = run("x/client", target, "80", "-o", "json")
    (answer,) = json.loads(out)
    assert (code, answer["allowed"], answer["trace"]["outcome"]) == (0, allowed, outcome)
    code, again, _ = run("x/client", target, "80", "-o", "json", "--exit-code")
    assert (code, again) == (0 if allowed else 3, out)


def test_what_cannot_be_judged_is_exit_1_all_the_same(world: Any, run: Run) -> None:
    assert run("x/client", "x/nobody", "80", "--exit-code")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["x/a", "x/b", "80", "--cluster"], "-f and --cluster exclude each other"),
        (["--flows=-", "--node=node1"], "--node is for a flow on the command line"),
        (["x/a", "x/b", "80", "--exit-code=yes"], "--exit-code takes no value"),
    ],
)
def test_mistakes(arguments: list[str], complaint: str, run: Run) -> None:
    code, _, errors = run(*arguments)
    assert (code, complaint in errors) == (2, True)


def test_pools_of_addresses_count(world: Any, run: Run) -> None:
    world.served(type="LoadBalancer", ingress=[{"ip": "198.51.100.1"}])
    arguments = ("203.0.113.9", "198.51.100.1", "80", "--node=node1", "--run-loadbalancer")
    _, out, _ = run(*arguments, "--output=json")
    assert json.loads(out)[0]["trace"]["service"]["server"] is None
    pools = "[{name: main, addresses: [198.51.100.0/24]}]"
    world.add(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "kube-router-address-pools", "namespace": "kube-system"},
            "data": {"pools": pools},
        }
    )
    _, out, errors = run(*arguments, "--output=json")
    assert json.loads(out)[0]["trace"]["service"]["server"] is not None, errors


# --- an agent ------------------------------------------------------------------------------------


@pytest.fixture
def agent(world: Any, tmp_path: Path) -> Iterator[Any]:
    """One that answers with what it is given; ``asked`` are the questions."""

    class Agent:
        def __init__(self) -> None:
            self.path = str(tmp_path / "agent.sock")
            self.asked: list[Any] = []
            self.kernel: Comparison | None = None
            self.answer: Any = None

        def explain(self, asked: Mapping[str, Any]) -> Any:
            self.asked.append(asked)
            if self.answer is not None:
                return self.answer
            trace = world.trace(asked["source"], asked["destination"], asked["port"])
            return to_builtins(Answer(trace, kernel=self.kernel))

    found = Agent()
    server = AgentSocket(found.path, {"explain": found.explain}, {})
    server.start()
    yield found
    server.stop()


def asked_of(agent: Any, *arguments: str) -> int:
    return cli.main(["explain", f"--agent-socket={agent.path}", *arguments])


def test_the_agent_is_asked(agent: Any, world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    world.served()
    agent.kernel = Comparison(
        "node1",
        (
            Check("the virtual server", "TCP 10.96.0.1:80 rr", "TCP 10.96.0.1:80 rr", True),
            Check("the route to x/b", "via 192.168.1.2", "none", False, "look at FRR: status"),
            Check("the chains of node2", "", "not compared here: ask there", None),
        ),
    )
    assert asked_of(agent, "x/client", "x/web", "80/udp", "--family=ipv4") == 0
    assert agent.asked == [to_builtins(Question("x/client", "x/web", 80, "UDP", "IPv4"))]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "  but the kernel of node node1 DIFFERS, see below"
    assert lines[-6:] == [
        "  kernel    DIFFERS on node node1: 1 of 2 checks",
        "            the route to x/b",
        "              expected via 192.168.1.2",
        "              found    none",
        "              remedy   look at FRR: status",
        "            the chains of node2: not compared here: ask there",
    ]
    assert asked_of(agent, "x/client", "x/web", "80", "-o", "json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert asked_of(agent, "x/client", "x/web", "80", "--exit-code") == 3
    assert answer["kernel"]["agrees"] is False
    capsys.readouterr()
    assert [each["agrees"] for each in answer["kernel"]["checks"]] == [True, False, None]
    agent.kernel = Comparison("node1", agent.kernel.checks[:1])
    assert asked_of(agent, "x/client", "x/web", "80", "--exit-code") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  kernel    agrees on node node1: 1 check"


def test_a_kernel_that_differs_is_red(
    agent: Any, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.served()
    agent.kernel = Comparison("node1", (Check("DIFFERS", "a", "b", False),))
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    asked_of(agent, "x/client", "x/web", "80")
    lines = screen.getvalue().splitlines()
    red = "\x1b[31mDIFFERS\x1b[0m"
    assert lines[2] == f"  but the kernel of node node1 {red}, see below"
    assert lines[-4] == f"  \x1b[1mkernel\x1b[0m    {red} on node node1: 1 of 1 checks"
    assert lines[-3].strip() == "DIFFERS"


def test_what_the_agent_does_not_know_is_in_json_too(
    agent: Any, world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = world.trace("x/client", "x/a", 80)
    agent.answer = to_builtins(Answer(trace, notes=("Pods are not all known yet",)))
    assert asked_of(agent, "x/client", "x/a", "80", "-o", "json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["notes"] == ["Pods are not all known yet"]


def test_what_the_agent_cannot_judge(agent: Any, capsys: pytest.CaptureFixture[str]) -> None:
    agent.answer = to_builtins(Answer(error="to: there is no pod x/q", missing="no trace"))
    assert asked_of(agent, "x/client", "x/q", "80") == 1
    expected = "cannot be judged: x/client -> x/q TCP 80\n  to: there is no pod x/q\n"
    assert capsys.readouterr().out == expected


def test_an_agent_of_another_version(agent: Any, capsys: pytest.CaptureFixture[str]) -> None:
    agent.answer = {"trace": {"outcome": "odd"}}
    assert asked_of(agent, "x/client", "x/q", "80") == 1
    assert "is of another version" in capsys.readouterr().err


def test_flows_of_a_file_are_asked_one_by_one(
    agent: Any, world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.served()
    flows = tmp_path / "flows.json"
    flows.write_text('[{"from": "x/a", "to": "x/b", "port": 80, "node": "node1"}, 5]')
    assert asked_of(agent, f"--flows={flows}", "-o", "json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["allowed"], first["trace"]["node"]) == (True, "node1")
    assert second["error"].startswith("a flow is an object like")
    assert [each["node"] for each in agent.asked] == ["node1"]


# --- an API server -------------------------------------------------------------------------------


class Lists:
    """An API server's lists, two objects at a time."""

    def __init__(self, documents: list[dict[str, Any]], pools: int) -> None:
        self._documents, self._pools = documents, pools
        self.closed = False

    def list(self, path: str, query: Mapping[str, str], *, timeout_s: float | None) -> bytes:
        (kind,) = [each.__name__ for each, where in RESOURCES.items() if where.path == path]
        found = [each for each in self._documents if each["kind"] == kind]
        start = int(query.get("continue", 0))
        more = str(start + 2) if len(found) > start + 2 else ""
        bare = [
            {name: value for name, value in each.items() if name not in ("kind", "apiVersion")}
            for each in found[start : start + 2]
        ]
        version = found[0]["apiVersion"] if found else "v1"
        body = {"kind": f"{kind}List", "apiVersion": version, "items": bare}
        return json.dumps({**body, "metadata": {"continue": more, "resourceVersion": "7"}}).encode()

    def get(self, path: str) -> bytes:
        assert path == "/api/v1/namespaces/kube-system/configmaps/kube-router-address-pools"
        raise RefusedError("no", self._pools, "", 0.0)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("pools", [403, 404, 500])
def test_the_lists_of_an_api_server(
    pools: int, world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.served()
    world.policy("x/closed", podSelector={"matchLabels": {"pod": "b"}}, policyTypes=["Ingress"])
    lists = Lists(list(world.documents.values()), pools)
    servers: list[str] = []

    def connect(options: Any) -> Lists:
        servers.append(options.kubeconfig)
        return lists

    monkeypatch.setattr(explain_sources, "connect", connect)
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    monkeypatch.setenv("KUBECONFIG", "/home/me/config")
    code = cli.main(["explain", "--cluster", "x/client", "x/web", "80", "-o", "json"])
    assert lists.closed
    assert servers == ["/home/me/config"]
    if pools == 500:
        assert code == 1
        return
    (answer,) = json.loads(capsys.readouterr().out)
    assert (code, answer["trace"]["outcome"]) == (0, "partly")
    assert [each["pod"] for each in answer["trace"]["backends"]] == ["x/a", "x/b", "x/c"]
    assert cli.main(["explain", "--kubeconfig=/k", "x/client", "x/web", "80"]) == 0
    assert servers[1:] == ["/k"]


def test_no_cluster_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def connect(options: Any) -> Any:
        raise ConfigurationError("no cluster is named")

    monkeypatch.setattr(explain_sources, "connect", connect)
    assert cli.main(["explain", "--cluster", "x/a", "x/b", "80"]) == 2
    assert "no cluster is named" in capsys.readouterr().err

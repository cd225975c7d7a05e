"""The command ``explain``: flows in, verdicts out, exit codes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from kube_router_py import cli
from kube_router_py.commands.explain import USAGE

POLICIES = """
x/deny: {podSelector: {}, policyTypes: [Ingress]}
x/web: {podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 1}]},
        {from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}]}
"""
OPEN = {"isolated": False, "allowed": True, "policies": [], "decided_by": None}
UNJUDGED = {**OPEN, "allowed": False}


@pytest.fixture
def manifests(tmp_path: Path, clusters: Any) -> str:
    return written(tmp_path, clusters.canonical() + clusters.policies(POLICIES))


def written(tmp_path: Path, items: list[Any]) -> str:
    path = tmp_path / "manifests.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return str(path)


@pytest.fixture
def run(manifests: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def explain(*arguments: str, stdin: str = "", files: str = manifests) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = cli.main(["explain", "-f", files, *arguments])
        found = capsys.readouterr()
        return code, found.out, found.err

    return explain


def answers(run: Any, flows: Any, *flags: str) -> list[Any]:
    """What policies have to say; what else is told of a flow has tests of its own."""
    code, out, _ = run("--flows", "-", "--output", "json", *flags, stdin=json.dumps(flows))
    assert code == 0
    found: list[Any] = json.loads(out)
    assert len(found) == len(flows)
    for each in found:
        assert (each.pop("trace") is None) == (each["error"] is not None)
        assert each.pop("kernel") is None
        assert each.pop("notes") == []
    return found


def test_one_answer_for_each_flow_in_the_same_order(run: Any) -> None:
    flows = [
        {"from": "y/b", "to": "x/a", "protocol": "TCP", "port": 80},
        {"from": "z/b", "to": "x/a", "protocol": "TCP", "port": 80},
        {"from": "x/a", "to": "y/b", "protocol": "UDP", "port": 53},
    ]
    isolated = {"isolated": True, "policies": ["x/deny", "x/web"]}
    assert answers(run, flows) == [
        {
            "allowed": True,
            "egress": OPEN,
            "ingress": {
                **isolated,
                "allowed": True,
                "decided_by": {"policy": "x/web", "rule": 1},
            },
            "reason": "egress of y/b is not isolated; ingress of x/a: isolated by x/deny, x/web, "
            "rule 1 of x/web admits y/b on TCP 80",
            "error": None,
        },
        {
            "allowed": False,
            "egress": OPEN,
            "ingress": {**isolated, "allowed": False, "decided_by": None},
            "reason": "ingress of x/a: isolated by x/deny, x/web, no rule admits z/b on TCP 80",
            "error": None,
        },
        {
            "allowed": True,
            "egress": OPEN,
            "ingress": OPEN,
            "reason": "egress of x/a is not isolated; ingress of y/b is not isolated",
            "error": None,
        },
    ]


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"from": "x/q", "to": "x/a", "port": 80}, "from: there is no pod x/q"),
        ({"from": "node/q", "to": "x/a", "port": 80}, "from: there is no Node 'q'"),
        ({"to": "x/a", "port": 80}, "from is missing"),
        ({"from": "y/b", "to": None, "port": 80}, "to is missing"),
        ({"from": "y/b", "to": "x/a"}, "port is missing"),
        ({"from": ["y/b"], "to": "x/a", "port": 80}, 'from ["y/b"] is no text'),
        ({"from": "y/b", "to": "x/a", "port": "80"}, 'port "80" is no whole number'),
        ({"from": "y/b", "to": "x/a", "port": "web"}, 'port "web" is no whole number'),
        ({"from": "y/b", "to": "x/a", "port": True}, "port true is no whole number"),
        ({"from": "y/b", "to": "x/a", "port": 80.5}, "port 80.5 is no whole number"),
        ({"from": "y/b", "to": "x/a", "port": 0}, "port 0 is not in 1..65535"),
        (
            {"from": "y/b", "to": "x/a", "port": 80, "protocol": "HTTP"},
            "protocol 'HTTP' is none of TCP, UDP, SCTP, and no other's number",
        ),
        (
            {"from": "y/b", "to": "x/a", "port": 80, "protocol": 6},
            "protocol 6 is no text",
        ),
        (
            {"from": "y/b", "to": "x/a", "port": 80, "family": "IPv5"},
            'family "IPv5" is neither IPv4 nor IPv6',
        ),
        (5, 'a flow is an object like {"from": "x/a", "to": "y/b", "port": 80}'),
        (None, 'a flow is an object like {"from": "x/a", "to": "y/b", "port": 80}'),
    ],
)
def test_a_bad_entry_has_an_error_and_the_others_their_verdicts(
    entry: Any, error: str, run: Any
) -> None:
    good = {"from": "y/b", "to": "x/a", "port": 80}
    first, found, last = answers(run, [good, entry, good])
    assert first == last
    assert (first["allowed"], first["error"]) == (True, None)
    assert found == {
        "allowed": False,
        "egress": UNJUDGED,
        "ingress": UNJUDGED,
        "reason": f"cannot be judged: {error}",
        "error": error,
    }


def test_protocol_and_family_have_defaults(run: Any) -> None:
    base = {"from": "y/b", "to": "x/a", "port": 80}
    flows = [
        {**base, "protocol": None, "family": None},
        {**base, "protocol": "tcp"},
        *({**base, "family": each} for each in ("IPv4", "IPv6", "ipv6", "6", 6)),
        {**base, "from": "fd00:10:244:2::21"},
        {**base, "protocol": "UDP"},
    ]
    assert [each["allowed"] for each in answers(run, flows)] == [True] * 8 + [False]


def test_nodes_and_services(run: Any, tmp_path: Path, clusters: Any) -> None:
    service = clusters.service("x/web", ["10.96.0.9"], 80, 8080)
    written(tmp_path, [*clusters.canonical(), service, *clusters.policies(POLICIES)])
    own, other, virtual = answers(
        run,
        [
            {"from": "node/node1", "to": "x/a", "port": 9},
            {"from": "node/node2", "to": "x/a", "port": 9},
            {"from": "y/a", "to": "10.96.0.9", "port": 80},
        ],
    )
    assert (own["allowed"], other["allowed"], virtual["allowed"]) == (True, False, False)
    assert virtual["reason"] == "Service x/web has no endpoint for this port"


def test_agent_flags_are_accepted_and_count(run: Any, tmp_path: Path, clusters: Any) -> None:
    policies = clusters.policies("x/p: {podSelector: {}, policyTypes: [Egress]}")
    written(tmp_path, clusters.canonical() + policies)
    flows = [{"from": "x/a", "to": "192.168.1.1", "port": 22}]
    flags = ("--run-router=false", "--enable-ipv6", "-v", "2")
    (strict,) = answers(run, flows, *flags)
    (kind,) = answers(run, flows, *flags, "--netpol-allow-own-node")
    assert (strict["allowed"], kind["allowed"]) == (False, True)


def test_flows_from_a_file(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    path.write_text('[{"from": "y/b", "to": "x/a", "port": 80}]', encoding="utf-8-sig")
    code, out, _ = run(f"--flows={path}", "-o", "json")
    assert (code, json.loads(out)[0]["allowed"]) == (0, True)


def test_no_flows_are_no_answers(run: Any) -> None:
    assert answers(run, []) == []


# --- text and the command line -------------------------------------------------------------------


def test_one_flow_on_the_command_line(run: Any) -> None:
    assert run("z/b", "x/a", "81/TCP", "--run-router=false") == (
        0,
        "denied: z/b -> x/a TCP 81 (10.244.2.31 -> 10.244.1.10)\n"
        "  from      pod z/b, 10.244.2.31, on node node2\n"
        "  to        pod x/a, 10.244.1.10, on node node1\n"
        "  egress    allowed: not isolated\n"
        "  ingress   x/a: isolated by x/deny, x/web, no rule admits z/b on TCP 81; judged on node "
        "node1\n"
        "  source    10.244.2.31 stays: nothing rewrites it\n"
        "  route     not known: another pod network routes here (--run-router=false)\n",
        "",
    )
    code, out, errors = run("y/b", "x/a", "80", "--family=IPv6", "--enable-ipv6")
    assert (code, errors) == (0, "")
    assert out.splitlines()[:5] == [
        "allowed: y/b -> x/a TCP 80 (fd00:10:244:2::21 -> fd00:10:244:1::10)",
        "  from      pod y/b, fd00:10:244:2::21, on node node2",
        "  to        pod x/a, fd00:10:244:1::10, on node node1",
        "  egress    y/b is not isolated",
        "  ingress   x/a: isolated by x/deny, x/web, rule 1 of x/web admits y/b on TCP 80; judged "
        "on node node1",
    ]
    code, out, _ = run("y/b", "x/a", "53/udp", "--output", "json")
    assert (code, [each["allowed"] for each in json.loads(out)]) == (0, [False])


def test_several_flows_as_text(run: Any) -> None:
    flows = [{"from": "y/b", "to": "x/a", "port": 80}, {"from": "q"}]
    code, out, _ = run("--flows", "-", stdin=json.dumps(flows))
    assert code == 0
    assert out.splitlines()[0].startswith("allowed: y/b -> x/a TCP 80 (")
    assert out.splitlines()[-2:] == ['cannot be judged: {"from": "q"}', "  to is missing"]


def test_one_flow_that_cannot_be_judged_is_exit_1(run: Any) -> None:
    code, out, _ = run("x/q", "x/a", "80/TCP")
    expected = "cannot be judged: x/q -> x/a TCP 80\n  from: there is no pod x/q\n"
    assert (code, out) == (1, expected)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "there is no flow: give SRC DST PORT/PROTO, or --flows"),
        (["--flows="], "--flows is empty"),
        (["x/a", "y/b"], "a flow is three words, SRC DST PORT/PROTO; there are 2: x/a y/b"),
        (["x/a", "y/b", "web"], "'web' is no PORT/PROTO; write 80/TCP, or 80"),
        (["x/a", "y/b", "80/"], "'80/' is no PORT/PROTO"),
        (["x/a", "y/b", "-80"], "-80"),
        (["x/a", "y/b", "80", "--flows=-"], "exclude each other"),
        (["x/a", "y/b", "80", "--family=7"], "--family '7' is unknown; choose IPv4 or IPv6"),
        (["--flows=-", "--family=IPv4"], "--family is for a flow on the command line"),
        (["--flows=-", "--output=yaml"], "--output 'yaml' is unknown; choose text or json"),
        (["--flows=-", "--no-such-flag"], "--no-such-flag is not a flag"),
        (["--flows=-", "-f", "-"], "-f - and --flows - cannot both read stdin"),
    ],
)
def test_a_mistake_in_the_flags_is_exit_2(arguments: list[str], complaint: str, run: Any) -> None:
    code, out, errors = run(*arguments)
    assert (code, out) == (2, "")
    assert complaint in errors


def test_without_manifests_the_agent_of_the_node_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["explain", "x/a", "x/b", "80", f"--agent-socket={tmp_path}/agent.sock"]
    assert cli.main(arguments) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert f"no agent answers at {tmp_path}/agent.sock" in found.err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"from": "x/a"}', "standard input is no JSON array of flows"),
        ("[", "standard input is no JSON: "),
        ("", "standard input is no JSON: "),
        ("[" * 100_000, "standard input is no JSON: "),
        ("[" + "9" * 5000 + "]", "standard input is no JSON: "),
    ],
)
def test_flows_that_are_no_array_are_exit_1(text: str, complaint: str, run: Any) -> None:
    code, out, errors = run("--flows", "-", stdin=text)
    assert (code, out) == (1, "")
    assert errors.startswith(f"kube-router-py explain: {complaint}")


def test_files_that_cannot_be_read_are_exit_1(run: Any, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    code, out, errors = run("x/a", "x/b", "80", files=nowhere)
    assert (code, out) == (1, "")
    assert f"{nowhere} cannot be read: No such file or directory" in errors
    code, out, errors = run("--flows", nowhere)
    assert (code, out) == (1, "")
    assert f"{nowhere} cannot be read: No such file or directory" in errors


def test_notes_tell_what_is_not_as_it_looks(run: Any, tmp_path: Path, clusters: Any) -> None:
    broken = clusters.policy("x/p", {"podSelector": {}, "ingress": [{"from": [5]}]})
    items = [each for each in clusters.canonical() if each["metadata"]["name"] != "y"]
    written(tmp_path, [*items, broken])
    notes = "kube-router-py explain: note: "
    code, out, errors = run("x/a", "x/b", "80", "--family=IPv6", "--run-firewall=false")
    assert (code, out.partition(":")[0]) == (0, "denied")
    assert errors.splitlines() == [
        f"{notes}NetworkPolicy x/p spec.ingress[0].from[0]: cannot be decoded: "
        "Expected `object`, got `int`; this peer matches nobody",
        f"{notes}Namespaces are not among the objects (y): no namespaceSelector selects them",
        f"{notes}an agent with --run-firewall=false enforces none of this",
        f"{notes}an agent without --enable-ipv6 does not enforce policies for IPv6",
    ]


def test_the_documented_answers_are_the_real_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[3]
    monkeypatch.chdir(root)
    text = (root / "docs" / "explain.md").read_text()
    commands = [
        line.removeprefix("$ kube-router-py ")
        for line in text.splitlines()
        if line.startswith("$ kube-router-py") and "docs/examples" in line
    ]
    assert len(commands) == 5
    for command in commands:
        assert cli.main(command.split()) == 0
        answer = capsys.readouterr().out
        assert f"$ kube-router-py {command}\n{answer}" in text


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--help"]) == 0
    assert capsys.readouterr().out == USAGE
    assert cli.main(["explain", "--version"]) == 0
    assert capsys.readouterr().out.startswith("kube-router-py ")

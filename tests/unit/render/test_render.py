"""render: golden documents, and what it does with files it cannot read."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kube_router_py import render
from kube_router_py.options import Options, parse
from kube_router_py.render_bgp import NOTHING_GIVEN, Given

GOLDEN = Path(__file__).parents[2] / "golden" / "render"
CASES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))


def options(*argv: str) -> Options:
    return parse(argv, {})


def run(
    capsys: pytest.CaptureFixture[str],
    *files: str,
    flags: tuple[str, ...] = (),
    output: str = "json",
    stdin: str = "",
    given: Given = NOTHING_GIVEN,
) -> tuple[int, str, str]:
    stdout = io.StringIO()
    code = render.main(files, "node1", options(*flags), output, given, io.StringIO(stdin), stdout)
    return code, stdout.getvalue(), capsys.readouterr().err


def flags_of(path: Path) -> tuple[str, ...]:
    (line,) = (each for each in path.read_text().splitlines() if each.startswith("# flags:"))
    return tuple(line.removeprefix("# flags:").split())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("output", ["json", "text"])
def test_golden(case: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """UPDATE_GOLDEN=1 writes the documents instead; read the difference before committing it."""
    path = GOLDEN / f"{case}.yaml"
    code, document, _ = run(capsys, str(path), flags=flags_of(path), output=output)
    assert code == 0
    # Where a document stood is told by the name it was given on the command line.
    document = document.replace(f"{GOLDEN}/", "")
    expected = GOLDEN / f"{case}.{'json' if output == 'json' else 'txt'}"
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(document)
    assert document == expected.read_text()


SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
}


def servers(document: str) -> list[str]:
    return [entry["service"] for entry in json.loads(document)["virtual_servers"]]


def test_standard_input_and_json_with_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = run(capsys, "-", stdin=json.dumps(SERVICE, indent="\t"))
    assert (code, servers(document)) == (0, ["default/web"])


def test_a_typed_list_need_not_repeat_the_kind(capsys: pytest.CaptureFixture[str]) -> None:
    item = {key: value for key, value in SERVICE.items() if key not in ("apiVersion", "kind")}
    listed = {"apiVersion": "v1", "kind": "ServiceList", "items": [item]}
    _, document, _ = run(capsys, "-", stdin=json.dumps(listed))
    assert servers(document) == ["default/web"]


def test_a_directory_is_read_in_order_and_the_last_object_of_a_name_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.json").write_text(json.dumps(SERVICE))
    changed = {**SERVICE, "spec": {**SERVICE["spec"], "clusterIP": "10.96.0.2"}}
    (tmp_path / "2.yml").write_text(json.dumps(changed))
    (tmp_path / "README.md").write_text("# not a manifest: [")
    _, document, _ = run(capsys, str(tmp_path))
    (entry,) = json.loads(document)["virtual_servers"]
    assert entry["address"] == "10.96.0.2"


@pytest.mark.parametrize("text", ["{", "a: [", "\tx: 1", "kind: Service\n\tname: x"])
def test_broken_syntax_is_exit_1_and_nothing_on_stdout(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document, errors = run(capsys, "-", stdin=text)
    assert (code, document) == (1, "")
    assert "standard input" in errors


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200_000, "levels deep"),
        ("- " * 200_000, "levels deep"),
        ("&a\nkind: List\nitems: [*a]\n", "contains itself"),
        ("kind: Service\nmetadata: &m {name: x, labels: *m}\n", "contains itself"),
        ('{"spec": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_a_hostile_text_is_exit_1(
    text: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document, errors = run(capsys, "-", stdin=text)
    assert (code, document) == (1, "")
    assert reason in errors


def test_a_few_lines_of_aliases_do_not_fill_the_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    lines += ["apiVersion: v1", "kind: Service", "metadata: {name: x, annotations: {all: *a9}}"]
    code, document, errors = run(capsys, "-", stdin="\n".join(lines))
    assert (code, document) == (1, "")
    assert "aliases" in errors


def test_aliases_that_are_meant_well_are_followed(capsys: pytest.CaptureFixture[str]) -> None:
    text = """
apiVersion: v1
kind: Service
metadata: {name: web, labels: &labels {app: web}}
spec: {clusterIP: 10.96.0.1, selector: *labels, ports: [&port {port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {clusterIP: 10.96.0.2, ports: [{<<: &again {port: 81}, protocol: TCP}]}
"""
    _, document, _ = run(capsys, "-", stdin=text)
    assert servers(document) == ["default/other", "default/web"]


def test_scalars_are_read_as_kubernetes_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    """YAML 1.1 has numbers to the base 60 and a scalar ``=`` of a type of its own."""
    text = """
apiVersion: v1
kind: ConfigMap
data: {operator: =}
---
apiVersion: v1
kind: Service
metadata: {name: web, creationTimestamp: 2024-01-01T00:00:00Z}
spec: {clusterIP: 2001:10:0:5:1:2:3:4, ports: [{port: 0x50}]}
"""
    code, document, _ = run(capsys, "-", stdin=text, flags=("--enable-ipv6=true",))
    (entry,) = json.loads(document)["virtual_servers"]
    assert (code, entry["address"], entry["port"]) == (0, "2001:10:0:5:1:2:3:4", 80)


@pytest.mark.parametrize("given", ["::102:304", "0:0::0102:304"])
def test_ipv6_addresses_in_canonical_form(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    service = {**SERVICE, "spec": {**SERVICE["spec"], "clusterIP": given}}
    _, document, _ = run(capsys, "-", stdin=json.dumps(service), flags=("--enable-ipv6=true",))
    (entry,) = json.loads(document)["virtual_servers"]
    assert entry["address"] == "::102:304"


@pytest.mark.parametrize("version", [None, 1, ""])
def test_an_object_that_does_not_say_its_version_is_told(
    version: object, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document, _ = run(capsys, "-", stdin=json.dumps({**SERVICE, "apiVersion": version}))
    (problem,) = json.loads(document)["problems"]
    assert (code, problem["field"]) == (0, "apiVersion")


def test_a_byte_order_mark_and_an_empty_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.json").write_text(json.dumps(SERVICE), encoding="utf-8-sig")
    (tmp_path / "2.json").write_text("")
    code, document, _ = run(capsys, str(tmp_path))
    assert (code, servers(document)) == (0, ["default/web"])


def test_a_left_over_node_port_of_a_cluster_ip_service_needs_no_node(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = {**SERVICE["spec"], "ports": [{"port": 80, "nodePort": 30080}]}
    _, document, _ = run(capsys, "-", stdin=json.dumps({**SERVICE, "spec": spec}))
    assert json.loads(document)["problems"] == []


def test_unreadable_files_are_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, errors = run(capsys, str(tmp_path / "missing.yaml"))
    assert (code, document) == (1, "")
    assert "missing.yaml" in errors
    (tmp_path / "latin1.yaml").write_bytes(b"a: \xe9")
    assert run(capsys, str(tmp_path / "latin1.yaml"))[0] == 1


def test_keys_of_a_switched_off_subsystem_are_absent(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--run-service-proxy=false", "--run-firewall=false", "--run-router=false")
    _, document, _ = run(capsys, "-", stdin=json.dumps(SERVICE), flags=flags)
    assert json.loads(document) == {"problems": []}
    _, text, _ = run(capsys, "-", stdin=json.dumps(SERVICE), flags=flags, output="text")
    assert text == ""


def test_nothing_is_allocated_and_that_is_noted_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare = {**SERVICE, "spec": {"ports": [{"port": 80}]}}
    flags = ("--run-firewall=false", "--run-router=false")
    code, document, errors = run(capsys, "-", stdin=json.dumps(bare), flags=flags)
    assert code == 0
    assert json.loads(document) == {
        "virtual_servers": [],
        "health_checks": [],
        "hairpins": [],
        "problems": [],
    }
    assert "default/web has no clusterIP" in errors


def test_a_node_port_without_a_cluster_ip_is_rendered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node1"},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.1.1"}]},
    }
    spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}
    listed = {"apiVersion": "v1", "kind": "List", "items": [node, {**SERVICE, "spec": spec}]}
    _, document, _ = run(capsys, "-", stdin=json.dumps(listed))
    found = json.loads(document)
    assert [(e["kind"], e["address"], e["port"]) for e in found["virtual_servers"]] == [
        ("node-port", "192.168.1.1", 30080)
    ]
    assert found["problems"] == []


@pytest.mark.parametrize("flag", ["--nodeport-bindon-all-ip=true", "--nodeport-addresses=::/0"])
def test_that_links_are_not_looked_at_is_noted_on_stderr(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, errors = run(capsys, "-", stdin=json.dumps(SERVICE), flags=(flag,))
    assert "addresses that the Node lists" in errors
    assert "addresses that the Node lists" not in run(capsys, "-", stdin=json.dumps(SERVICE))[2]


POOLS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: kube-router-address-pools, namespace: kube-system}
data: {pools: "- {name: a, addresses: [203.0.113.0/28]}"}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}
"""


@pytest.mark.parametrize(
    ("config", "flags", "namespace", "is_served"),
    [
        (POOLS, ("--run-loadbalancer",), "kube-system", True),
        (POOLS, (), "kube-system", False),  # nobody follows it
        (POOLS, ("--run-loadbalancer",), "elsewhere", False),
        (
            POOLS.replace("203.0.113.0/28", "nonsense"),
            ("--run-loadbalancer",),
            "kube-system",
            False,
        ),
        (POOLS.replace("pools:", "pool:"), ("--run-loadbalancer",), "kube-system", False),
    ],
)
def test_pools_are_those_of_the_agents_own_config_map(
    config: str,
    flags: tuple[str, ...],
    namespace: str,
    is_served: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = Given(namespace=namespace)
    # Without a range kube-router's allocator does not run.
    everything = ("--loadbalancer-ip-range=198.51.100.0/24", *flags)
    _, text, _ = run(capsys, "-", flags=everything, stdin=config, given=where)
    document = json.loads(text)
    assert ("203.0.113.1" in {each["address"] for each in document["virtual_servers"]}) is is_served
    assert ("is refused" in str(document["problems"])) is not is_served
    # What is wrong with the ConfigMap itself is told, too.
    is_wrong = config != POOLS
    assert ("ConfigMap kube-system/kube-router-address-pools" in text) is is_wrong

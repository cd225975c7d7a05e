"""docs/troubleshooting.md quotes ``explain`` as it speaks, and names all findings of ``doctor``."""

import re
from pathlib import Path

import pytest

from kube_router_py.commands import explain
from kube_router_py.doctor.findings import CODES, NOTE

REPOSITORY = Path(__file__).parents[3]
DOCS = REPOSITORY / "docs"
SHOP = (DOCS / "examples/shop.yaml").read_text()
PAGE = (DOCS / "troubleshooting.md").read_text()
READY = "conditions: {ready: true}"
IP = "  clusterIP: 10.96.0.20\n"
PORTS = "  ports: [{name: sql, port: 5432, targetPort: sql}]\n---"
BALANCER = SHOP.replace(
    IP, IP + "  type: LoadBalancer\n  loadBalancerSourceRanges: [198.51.100.0/24]\n"
).replace(
    PORTS,
    PORTS.removesuffix("---") + "status: {loadBalancer: {ingress: [{ip: 203.0.113.20}]}}\n---",
    1,
)
INSIDE = ["shop/web", "svc/data/db", "5432/TCP"]
OUTSIDE = ["--node=node1", "192.0.2.9"]

CASES = {
    "no endpoint": (SHOP.replace("service-name: db}", "service-name: other}"), INSIDE),
    "not ready": (SHOP.replace(READY, "conditions: {ready: false}"), INSIDE),
    "terminating": (
        SHOP.replace(READY, "conditions: {ready: false, terminating: true}").replace(
            "    conditions: {ready: false}\n",
            "    conditions: {ready: false, terminating: true}\n",
        ),
        INSIDE,
    ),
    "serving still": (
        SHOP.replace(READY, "conditions: {ready: false, serving: true, terminating: true}"),
        INSIDE,
    ),
    "external local": (SHOP, ["203.0.113.9", "node/node1", "30432/TCP"]),
    "internal local": (SHOP.replace(IP, IP + "  internalTrafficPolicy: Local\n"), INSIDE),
    "port": (SHOP, ["shop/web", "svc/data/db", "80/TCP"]),
    "external IP": (
        SHOP.replace(IP, IP + "  externalIPs: [203.0.113.10]\n"),
        [*OUTSIDE, "203.0.113.10", "5432/TCP"],
    ),
    "balancer IP": (BALANCER, [*OUTSIDE, "203.0.113.20", "5432/TCP"]),
    "source ranges": (
        BALANCER,
        ["--loadbalancer-ip-range=203.0.113.0/24", *OUTSIDE, "203.0.113.20", "5432/TCP"],
    ),
    "another proxy": (
        SHOP.replace(
            "{name: db, namespace: data}",
            "{name: db, namespace: data, labels: {service.kubernetes.io/service-proxy-name: x}}",
        ),
        INSIDE,
    ),
    "no proxy": (SHOP, ["--run-service-proxy=false", *INSIDE]),
    "headless": (SHOP.replace(IP, "  clusterIP: None\n"), INSIDE),
    "node port": (
        SHOP.replace(
            "{type: InternalIP, address: 192.168.1.1}",
            "{type: InternalIP, address: 192.168.1.1}, {type: ExternalIP, address: 198.51.100.1}",
        ),
        ["203.0.113.9", "198.51.100.1", "30432/TCP", "--node=node1"],
    ),
    "policy": (SHOP, ["shop/cron", "svc/data/db", "5432/TCP"]),
    "hairpin": (
        re.sub(r"(?s)---\napiVersion: networking.k8s.io.*", "", SHOP),
        ["data/db-0", "svc/data/db", "5432/TCP"],
    ),
}
# What needs a node's kernel; test_explain of the end-to-end tests sees it printed.
OF_THE_KERNEL = "but the kernel of node"


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What ``explain`` says of each case."""
    found = {}
    for name, (text, arguments) in CASES.items():
        (tmp_path / "cluster.yaml").write_text(text)
        assert explain.main(["-f", str(tmp_path / "cluster.yaml"), *arguments]) == 0, name
        found[name] = capsys.readouterr().out
    return found


def quoted() -> list[str]:
    """The quotations of the table's first column."""
    table = PAGE.partition("| explain says |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.*?) \| ", table.partition("|---|")[2], re.MULTILINE)
    return [each for row in rows for each in re.findall(r"`([^`]+)`", row)]


def test_explain_says_what_the_page_quotes(said: dict[str, str]) -> None:
    everything = "\n".join(said.values())
    assert len(quoted()) > 12
    for quotation in quoted():
        if quotation.startswith(OF_THE_KERNEL):
            assert OF_THE_KERNEL in (REPOSITORY / "kube_router_py/flow/text.py").read_text()
            continue
        pattern = re.escape(quotation.replace("served no", "served    no"))
        pattern = pattern.replace(re.escape("..."), ".*").replace("x/y", r"\S+")
        pattern = re.sub(r"\d+", r"\\d+", pattern)
        assert re.search(pattern, everything), quotation


def test_every_finding_of_doctor_belongs_to_a_symptom() -> None:
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", PAGE))
    assert named <= set(CODES)
    # What is wrong with how doctor was called is no symptom of a node's.
    of_doctor = {"could-not-look", "wrong-network-namespace"}
    notes = {code for code, severity in CODES.items() if severity == NOTE}
    assert set(CODES) - named == of_doctor | notes

"""Things are broken on purpose, as they break in clusters: each fault is told as what it is, and
as nothing else, by whichever command an operator would ask.

The faults are made with the tools of the kernel and of Kubernetes alone; nothing of what finds them
is imported here. Before and after each of them nothing is wrong.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.faults

Object = dict[str, Any]
NAMESPACE = "/api/v1/namespaces/faults"
NODES = ("node1", "node2")


class Asked:
    """The commands of a node."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster

    def command(self, node: str, *words: str) -> Object:
        inside = self.cluster.state.enter(node, ["kube-router-py", *words, "--output=json"])
        done = subprocess.run(inside, capture_output=True, text=True, timeout=300, check=False)
        try:
            return json.loads(done.stdout)  # type: ignore[no-any-return]
        except ValueError:
            raise AssertionError(f"{words}: {done.stdout}{done.stderr}") from None

    def doctor(self, node: str, *flags: str) -> dict[str, str]:
        """Code of every finding, with what it says."""
        report = self.command(node, "doctor", *flags)
        return {each["code"]: f"{each['object']}: {each['what']}" for each in report["findings"]}

    def explain(self, node: str, *flow: str) -> Object:
        answers = self.command(node, "explain", *flow)
        return dict(answers[0] if isinstance(answers, list) else answers)

    def becomes(self, look: Callable[[], Any], wanted: Any) -> None:
        """Wait until the answer is exactly this."""
        seen: list[Any] = []

        def same() -> bool:
            seen[:] = [look()]
            return bool(seen[0] == wanted)

        try:
            self.cluster.eventually(same, f"{wanted}")
        except BaseException:
            print("last answer:", seen)
            raise

    def finds(
        self,
        node: str,
        *codes: str,
        flags: tuple[str, ...] = (),
        before: Callable[[], object] = lambda: None,
    ) -> dict[str, str]:
        """Exactly these, in the end; what they say. ``before`` is done before each look."""
        found: dict[str, str] = {}

        def look() -> set[str]:
            nonlocal found
            before()
            found = self.doctor(node, *flags)
            return {*found}

        self.becomes(look, {*codes})
        return found


@pytest.fixture(scope="module")
def asked(cluster: Any) -> Asked:
    return Asked(cluster)


@pytest.fixture(autouse=True)
def healthy(asked: Asked) -> Iterator[None]:
    """Nothing is wrong before, and nothing afterwards."""
    for node in NODES:
        asked.finds(node)
    yield
    for node in NODES:
        asked.finds(node)


def kubectl(*words: str, manifest: Object | None = None) -> None:
    text = None if manifest is None else json.dumps(manifest)
    subprocess.run(["kubectl", *words], input=text, text=True, check=True, timeout=120)


@contextmanager
def rule(cluster: Any, node: str, chain: str, *words: str) -> Iterator[None]:
    cluster.run(node, "iptables", "-w", "-I", chain, "1", *words)
    try:
        yield
    finally:
        cluster.run(node, "iptables", "-w", "-D", chain, *words)


@contextmanager
def restarted(cluster: Any, node: str, *flags: str) -> Iterator[None]:
    """Its agent with other flags."""
    cluster.agent(node, "stop")
    cluster.agent(node, "start", *flags)
    try:
        yield
    finally:
        cluster.agent(node, "stop")
        cluster.agent(node, "start")
        cluster.wait()


def differing(answer: Object) -> list[Object]:
    """Where the kernel has something else than the answer says."""
    return [each for each in answer["kernel"]["checks"] if each["agrees"] is False]


WAY = ("faults/client", "faults/web", "8080/TCP")
TO_SERVICE = "service/faults/{}"


# --- rules and sets -------------------------------------------------------------------------------


def test_a_foreign_rule_drops(cluster: Any, asked: Asked) -> None:
    with rule(cluster, "node1", "FORWARD", "-p", "tcp", "--dport", "8080", "-j", "DROP"):
        assert "FORWARD" in asked.finds("node1", "foreign-drop")["foreign-drop"]
        answer = asked.explain("node1", *WAY)
        assert all("--dport 8080 -j DROP" in each["found"] for each in differing(answer))
        assert differing(answer)
    assert asked.explain("node1", *WAY)["kernel"]["agrees"]


def test_a_set_was_emptied(cluster: Any, asked: Asked) -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "from-client", "namespace": "faults"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
        },
    }
    kubectl("apply", "-f", "-", manifest=policy)
    try:
        cluster.wait()
        answer = asked.explain("node1", *WAY)
        assert (answer["allowed"], answer["kernel"]["agrees"]) == (True, True)
        names = cluster.run("node1", "ipset", "list", "-n").split()
        (name,) = [each for each in names if each.startswith("KUBE-SRC-")]
        cluster.run("node1", "ipset", "flush", name)
        answer = asked.explain("node1", *WAY)
        missing, refusing = differing(answer)
        assert name in missing["found"]
        assert "REJECT" in refusing["found"]
        with restarted(cluster, "node1"):  # which looks at everything, and repairs
            cluster.wait()
            assert asked.explain("node1", *WAY)["kernel"]["agrees"]
    finally:
        kubectl("-n", "faults", "delete", "networkpolicy", "from-client")
        cluster.wait()


def test_a_policy_blocks(cluster: Any, asked: Asked) -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "faults"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]},
    }
    kubectl("apply", "-f", "-", manifest=policy)
    try:
        cluster.wait()
        answer = asked.explain("node1", *WAY)
        assert not answer["allowed"]
        assert answer["ingress"]["policies"] == ["faults/closed"]
        assert answer["kernel"]["agrees"]
        asked.finds("node1")
    finally:
        kubectl("-n", "faults", "delete", "networkpolicy", "closed")
        cluster.wait()


# --- Services -------------------------------------------------------------------------------------


def test_no_endpoints(asked: Asked) -> None:
    answer = asked.explain("node2", "faults/client", TO_SERVICE.format("nobody"), "80/TCP")
    assert not answer["allowed"]
    assert "endpoint" in answer["reason"]


def test_terminating_endpoints_only(cluster: Any, asked: Asked) -> None:
    endpoint_slice = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "leaving-1",
            "namespace": "faults",
            "labels": {"kubernetes.io/service-name": "leaving"},
        },
        "addressType": "IPv4",
        "ports": [{"port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": ["10.244.1.250"],
                "nodeName": "node1",
                "conditions": {"ready": False, "serving": False, "terminating": True},
            }
        ],
    }
    kubectl("apply", "-f", "-", manifest=endpoint_slice)
    try:
        cluster.wait()
        answer = asked.explain("node2", "faults/client", TO_SERVICE.format("leaving"), "80/TCP")
        assert not answer["allowed"]
        assert "terminating" in answer["reason"]
    finally:
        kubectl("-n", "faults", "delete", "endpointslice", "leaving-1")


def test_traffic_policy_local_without_an_endpoint_here(cluster: Any, asked: Asked) -> None:
    outside = cluster.address("client", 4)
    here = asked.explain("node1", outside, cluster.address("node1", 4), "30081/TCP")
    assert here["allowed"], here["reason"]
    there = asked.explain("node2", outside, cluster.address("node2", 4), "30081/TCP")
    assert not there["allowed"]
    assert "Local" in there["reason"]


def test_a_load_balancer_address_that_nothing_admits(cluster: Any, asked: Asked) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "metallb", "namespace": "faults"},
        "spec": {
            "type": "LoadBalancer",
            "loadBalancerClass": "metallb.io/metallb",
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080}],
        },
    }
    kubectl("apply", "-f", "-", manifest=service)
    try:
        status = {"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.77"}]}}}
        cluster.api.merge(f"{NAMESPACE}/services/metallb/status", status)
        cluster.wait()
        assert asked.finds("node1", "lb-ip-refused")["lb-ip-refused"].startswith(
            "Service faults/metallb:"
        )
    finally:
        kubectl("-n", "faults", "delete", "service", "metallb")
        cluster.wait()


def test_a_pool_is_full(cluster: Any, asked: Asked) -> None:
    names = ("full1", "full2", "full3")
    for name in names:
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "faults"},
            "spec": {
                "type": "LoadBalancer",
                "selector": {"app": "web"},
                "ports": [{"port": 80, "targetPort": 8080}],
            },
        }
        kubectl("apply", "-f", "-", manifest=service)
    try:

        def leaders() -> list[str]:
            return [n for n in NODES if "pool-full" in asked.doctor(n)]

        (leader,) = cluster.eventually(leaders, "the leader says that the pool is full")
        assert "small" in asked.finds(leader, "pool-full")["pool-full"]
        (row,) = asked.command(leader, "status")["load_balancer"]["pools"]
        assert (row["name"], row["free"]) == ("small", 0)
    finally:
        for name in names:
            kubectl("-n", "faults", "delete", "service", name)


# --- flags, API server, permissions ---------------------------------------------------------------


def test_the_range_of_cluster_ips_is_wrong(cluster: Any, asked: Asked) -> None:
    with restarted(cluster, "node1", "--service-cluster-ip-range=10.200.0.0/16"):
        asked.finds("node1", "service-range-wrong")


def test_the_api_server_is_down(cluster: Any, asked: Asked) -> None:
    cluster.state.ask({"op": "apiserver", "verb": "stop"})
    try:
        asked.finds("node1", "api-unreachable")
        cluster.eventually(lambda: asked.command("node1", "status")["behind"], "status tells")
    finally:
        cluster.state.ask({"op": "apiserver", "verb": "start"})


def test_a_permission_is_missing(cluster: Any, asked: Asked) -> None:
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/kube-router-py"
    role = cluster.api.get(path)
    rules = [each for each in role["rules"] if "networkpolicies" not in each["resources"]]
    assert len(rules) == len(role["rules"]) - 1
    cluster.api.merge(path, {"rules": rules})
    try:
        assert "networkpolicies" in asked.finds("node1", "rbac-missing")["rbac-missing"]
    finally:
        cluster.api.merge(path, {"rules": role["rules"]})


def test_the_api_server_is_reached_through_its_own_cluster_ip(
    cluster: Any, asked: Asked, tmp_path: Path
) -> None:
    """With which the agent does not start: asked before, as its init container does."""
    document = yaml.safe_load(cluster.state.kubeconfig.read_text())
    config = tmp_path / "config"

    def finds(server: str, *codes: str) -> dict[str, str]:
        document["clusters"][0]["cluster"]["server"] = server
        config.write_text(json.dumps(document))
        flags = ("--preflight", "--run-service-proxy=false", "--hostname-override=node1")
        return asked.finds("node1", *codes, flags=(*flags, f"--kubeconfig={config}"))

    finds(f"https://{cluster.address('apiserver', 4)}:6443")
    found = finds("https://10.96.0.1:443", "api-through-cluster-ip")
    assert "10.96.0.1" in found["api-through-cluster-ip"]


# --- routes ---------------------------------------------------------------------------------------


def test_the_password_of_a_peer_is_wrong(cluster: Any, asked: Asked) -> None:
    with restarted(cluster, "node1", "--peer-router-passwords=c2VjcmV0"):
        asked.finds("node1", "bgp-password-wrong")
        neighbors = asked.command("node1", "status")["router"]["neighbors"]
        assert {each["type"]: each["state"] == "Established" for each in neighbors} == {
            "external": False,
            "internal": True,
        }


def test_a_second_bgp_daemon(cluster: Any, asked: Asked) -> None:
    inside = cluster.state.enter("node1", ["gobgpd", "--api-hosts=127.0.0.1:0"])
    other = subprocess.Popen(inside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert "gobgpd" in asked.finds("node1", "bgp-second-daemon")["bgp-second-daemon"]
    finally:
        other.kill()
        other.wait()


def test_the_mtu_of_the_bridge_is_too_large(cluster: Any, asked: Asked) -> None:
    with restarted(cluster, "node1", "--auto-mtu=false"):
        link = "kube-bridge"
        text = cluster.run("node1", "ip", "-j", "link", "show", link)
        before = json.loads(text)[0]["mtu"]
        cluster.run("node1", "ip", "link", "set", link, "mtu", "9000")
        try:
            assert link in asked.finds("node1", "mtu-too-large")["mtu-too-large"]
        finally:
            cluster.run("node1", "ip", "link", "set", link, "mtu", str(before))


def test_another_network_plugin_comes_first(cluster: Any, asked: Asked) -> None:
    directory = cluster.state.directory / "nodes" / "node1" / "root" / "etc" / "cni" / "net.d"
    other = directory / "05-cilium.conflist"
    other.write_text(json.dumps({"cniVersion": "0.3.1", "name": "cilium", "plugins": []}))
    try:
        assert "05-cilium" in asked.finds("node1", "cni-shadowed")["cni-shadowed"]
    finally:
        other.unlink()


def test_the_cni_file_is_stale(cluster: Any, asked: Asked) -> None:
    directory = cluster.state.directory / "nodes" / "node1" / "root" / "etc" / "cni" / "net.d"
    (file,) = directory.glob("*.conflist")
    text = file.read_text()
    assert "10.244.1.0/24" in text
    stale = text.replace("10.244.1.0/24", "10.244.99.0/24")
    try:
        # The agent mends it once a minute.
        found = asked.finds("node1", "cni-stale", before=lambda: file.write_text(stale))
        assert file.name in found["cni-stale"]
    finally:
        file.write_text(text)

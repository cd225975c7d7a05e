"""render of routing: the same as the route controller does, and no password unless asked for."""

import base64
import io
import json
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given as hypothesis_given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kube_router_py import render
from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.kernel import fake, ports
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.fake_host import FakeLinkKernel
from kube_router_py.kernel.fake_overlay import FakeOverlayLinks, fake_overlay
from kube_router_py.kernel.overlay_ports import MAIN, Encap, Neighbour, Route, Tunnel
from kube_router_py.kernel.ports import NodeAddress
from kube_router_py.manifests import load_manifests
from kube_router_py.options import Options, parse
from kube_router_py.render_bgp import NOTHING_GIVEN, Given
from kube_router_py.render_routing import parse_link
from kube_router_py.routing.controller import KINDS, RouteController, RoutingPorts
from kube_router_py.routing.pod_network import PodNetwork
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import routing_settings
from kube_router_py.served import Served

GOLDEN = Path(__file__).parents[2] / "golden" / "render"
CASES = (
    "announced-services",
    "bgp-peers",
    "routing-dual-stack",
    "routing-malformed",
    "tunnels-ipip",
    "tunnels-vxlan",
)
FLAGS = ("--run-firewall=false", "--run-service-proxy=false")
SHOWN = Given(show_secrets=True)

Object = dict[str, Any]


def options(*argv: str) -> Options:
    return parse(argv, {})


def run(
    *objects: Object | str,
    flags: tuple[str, ...] = FLAGS,
    given: Given = NOTHING_GIVEN,
    output: str = "json",
) -> tuple[int, str]:
    """Exit code and what went to stdout."""
    texts = [each if isinstance(each, str) else yaml.safe_dump(each) for each in objects]
    stdin, stdout = io.StringIO("---\n".join(texts)), io.StringIO()
    code = render.main(["-"], "node1", options(*flags), output, given, stdin, stdout)
    return code, stdout.getvalue()


def document(*objects: Object | str, **rest: Any) -> Object:
    code, text = run(*objects, **rest)
    assert code == 0
    found: Object = json.loads(text)
    return found


def node(
    name: str,
    *addresses: str,
    cidrs: tuple[str, ...] = (),
    annotations: dict[str, str] | None = None,
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {"podCIDRs": list(cidrs)},
        "status": {"addresses": [{"type": "InternalIP", "address": each} for each in addresses]},
    }


def peers(*items: Object) -> dict[str, str]:
    return {"kube-router.io/peers": yaml.safe_dump([*items])}


def secret(name: str, namespace: str = "kube-system", **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: encoded(value) for key, value in data.items()},
    }


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


NODE1 = node("node1", "10.0.1.11", cidrs=("10.244.1.0/24",))
BY_SECRET = {"remoteip": "192.0.2.1", "remoteasn": 65000, "passwordsecretref": {}} | {
    "passwordsecretref": {"name": "bgp", "key": "tor"}
}


def node_with(*items: Object) -> Object:
    return node("node1", "10.0.1.11", cidrs=("10.244.1.0/24",), annotations=peers(*items))


# --- the same as the agent ------------------------------------------------------------------


class CniFile:
    def __init__(self, path: str) -> None:
        self.path, self.text = path, ""

    def read(self) -> str | None:
        return None

    def write(self, text: str) -> None:
        self.text = text

    def comes_before(self) -> tuple[str, ...]:
        return ()


@pytest.mark.parametrize("case", CASES)
def test_what_is_shown_is_what_the_route_controller_does(case: str) -> None:
    path = GOLDEN / f"{case}.yaml"
    (line,) = (each for each in path.read_text().splitlines() if each.startswith("# flags:"))
    flags = options(*line.removeprefix("# flags:").split())
    settings = routing_settings(flags)
    manifests = load_manifests([str(path)], io.StringIO(), with_secrets=True)
    shown = render.render(manifests, "node1", flags, SHOWN)

    links = FakeLinkKernel()
    own = manifests.get(Node, "node1")
    assert own is not None
    assert own.status is not None
    for each in own.status.addresses or ():
        if each.type == "InternalIP":
            address = ip_address(each.address)
            family, length = (2, 24) if address.version == 4 else (10, 64)
            links.addresses.append(NodeAddress(family, address.packed, length, "eth0"))
    host = ports.HostPorts(
        fake.FakeIpvs(),
        fake.FakeLinks("route", links),
        fake.FakeIpsets(),
        fake.FakeIptables(),
        fake.FakeSysctls({"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0"}),
    )
    overlay, daemons, cni = fake_overlay(), FakeDaemons(), CniFile(flags.cni_conf_file)
    served = Served()
    served.change(ip_address(entry["address"]).packed for entry in shown.get("virtual_servers", ()))
    cache = Cache(KINDS)
    for kind in (Node, Service, EndpointSlice):
        for thing in manifests.list(kind):
            cache.put(kind, thing)
    controller = RouteController(
        cache,
        settings,
        "node1",
        lambda: RoutingPorts(host, overlay, FakeFrr(daemons), cni),
        lambda: PodNetwork(settings, "node1", has_firewall=False),
        PasswordSources(
            settings,
            "node1",
            lambda ref: manifests.secrets.get(f"kube-system/{ref.name}", {}).get(ref.key),
        ),
        served if settings.has_proxy else None,
    )
    controller.open()
    outcome = controller.reconcile(frozenset(), True)

    (boot,) = daemons.boots
    assert shown["frr"] == {"bfdd": "", **boot.files}
    routes, rules = overlay.routes.read()
    assert {route_of(each) for each in shown["routes"] if each["by"] == "agent"} == routes
    assert {ip_network(each["from"]) for each in shown["rules"]} == rules
    tunnels = overlay.links.read()
    assert {each["name"]: tunnel_of(each) for each in shown["tunnels"]} == tunnels
    made = {
        Neighbour(each["name"], ip_address(one["address"]))
        for each in shown["tunnels"]
        for one in each.get("neighbours", ())
    }
    assert isinstance(overlay.links, FakeOverlayLinks)
    assert made == overlay.links.neighbours
    assert shown["cni"] == {"file": cni.path, "content": json.loads(cni.text)}
    told = {(each["object"], each["field"], each["reason"]) for each in shown["problems"]}
    agents = {(each.object, each.field, each.reason) for each in outcome.problems}
    assert agents <= told
    # All others are the service proxy's.
    assert settings.has_proxy or agents == told


def route_of(shown: Object) -> Route:
    assert shown["protocol"] == "75"
    via, source = shown.get("via"), shown.get("source")
    return Route(
        destination=ip_network(shown["destination"]),
        link=shown["link"],
        table=MAIN if shown["table"] == "main" else int(shown["table"]),
        gateway=ip_address(via) if via else None,
        source=ip_address(source) if source else None,
    )


def tunnel_of(shown: Object) -> Tunnel:
    return Tunnel(
        name=shown["name"],
        encap=Encap(shown["encapsulation"]),
        local=ip_address(shown["local"]),
        remote=ip_address(shown["remote"]) if shown["remote"] else None,
        port=shown["port"] or 0,
        mtu=shown["mtu"],
    )


# --- what is not known ----------------------------------------------------------------------


def test_a_node_that_is_not_there_has_empty_keys(capsys: pytest.CaptureFixture[str]) -> None:
    other = node("node2", "10.0.1.12", cidrs=("10.244.2.0/24",))
    found = document(other)
    assert found == {
        "frr": {},
        "routes": [],
        "rules": [],
        "tunnels": [],
        "cni": {},
        "problems": [],
    }
    assert "Node node1 is not among the objects" in capsys.readouterr().err
    assert run(other, output="text") == (0, "")


@pytest.mark.parametrize(
    ("link", "tunnels", "by"),
    [("10.0.1.11/24", 1, {"agent"}), ("10.0.1.11/16", 0, {"frr"}), ("10.9.0.1/8", 0, {"frr"})],
)
def test_links_decide_who_is_near(
    link: str, tunnels: int, by: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = Given(links=(ip_interface(link),), link_mtu=9000)
    far = node("node2", "10.0.2.12", cidrs=("10.244.2.0/24",))
    found = document(NODE1, far, given=given)
    if link.startswith("10.9."):
        # None of the Node's addresses is on a link.
        assert (found["routes"], found["tunnels"]) == ([], [])
        assert any("no link of the node has 10.0.1.11" in p["reason"] for p in found["problems"])
        return
    assert len(found["tunnels"]) == tunnels
    assert {each["by"] for each in found["routes"]} == by
    assert found["cni"]["content"]["mtu"] == 8980
    assert all(each["mtu"] == 8980 for each in found["tunnels"])
    assert f"{link} and an MTU of 9000" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1/33", "", "/24", "x/24", "fd00::1"])
def test_a_link_is_an_address_with_a_length(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as 10\.0\.0\.11/24"):
        parse_link(text)


def test_a_drain_is_shown_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    }
    routers = ("--peer-router-ips=192.0.2.1", "--peer-router-asns=65000")
    flags = (*FLAGS, "--advertise-cluster-ip", *routers)
    assert "network 10.96.0.1/32" in document(NODE1, service, flags=flags)["frr"]["bgpd"]
    assert "drained" not in capsys.readouterr().err
    annotations = {"kube-router.io/drain": "true"}
    draining = node("node1", "10.0.1.11", cidrs=("10.244.1.0/24",), annotations=annotations)
    bgpd = document(draining, service, flags=flags)["frr"]["bgpd"]
    assert "bgp graceful-shutdown" in bgpd
    assert "network 10.244.1.0/24" in bgpd
    assert "10.96.0.1/32" not in bgpd
    assert "this node is drained: annotation kube-router.io/drain" in capsys.readouterr().err


def test_what_the_service_proxy_would_not_serve_is_not_announced() -> None:
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.1", "ports": []},
    }
    flags = ("--run-firewall=false", "--advertise-cluster-ip")
    assert "10.96.0.1" not in document(NODE1, service, flags=flags)["frr"]["bgpd"]
    service["spec"]["ports"] = [{"port": 80}]
    assert "network 10.96.0.1/32" in document(NODE1, service, flags=flags)["frr"]["bgpd"]


@pytest.mark.parametrize(
    ("own", "other", "flags", "is_learned"),
    [
        ({}, {}, (), True),
        ({}, {}, ("--enable-ibgp=false",), False),
        ({"kube-router.io/node.bgp.customimportreject": "10.244.0.0/16"}, {}, (), False),
        ({"kube-router.io/node.bgp.customimportreject": "10.0.0.0/16"}, {}, (), True),
        # Of another AS, clients of a reflector that is not there, of one that is.
        (
            {"kube-router.io/node.asn": "64512"},
            {"kube-router.io/node.asn": "64513"},
            ("--nodes-full-mesh=false",),
            False,
        ),
        ({"kube-router.io/rr.client": "1"}, {"kube-router.io/rr.client": "1"}, (), False),
        (
            {"kube-router.io/rr.client": "1"},
            {"kube-router.io/rr.client": "1"},
            ("with a reflector",),
            True,
        ),
    ],
)
def test_routes_are_to_be_learned_from_whom_there_are_sessions_with(
    own: dict[str, str], other: dict[str, str], flags: tuple[str, ...], is_learned: bool
) -> None:
    nodes = [
        node("node1", "10.0.1.11", cidrs=("10.244.1.0/24",), annotations=own),
        node("node2", "10.0.1.12", cidrs=("10.244.2.0/24",), annotations=other),
    ]
    if flags == ("with a reflector",):
        flags = ()
        nodes.append(node("node3", "10.0.2.13", annotations={"kube-router.io/rr.server": "1"}))
    found = document(*nodes, flags=(*FLAGS, *flags))
    learned = [(each["destination"], each["via"]) for each in found["routes"]]
    assert learned == ([("10.244.2.0/24", "10.0.1.12")] if is_learned else [])


def test_what_is_wrong_with_pod_cidrs_is_told() -> None:
    everything = node("node2", "10.0.1.12", cidrs=("0.0.0.0/0",))
    found = document(node("node1", "10.0.1.11"), everything)
    told = {(each["object"], each["field"]) for each in found["problems"]}
    assert told == {("Node node1", "spec.podCIDRs"), ("Node node2", "spec.podCIDRs")}
    assert found["cni"] == {}
    assert document(node("node1", "10.0.1.11"), flags=(*FLAGS, "--enable-cni=false"))["cni"] == {}


def test_without_an_address_there_is_no_bgp_and_that_is_told() -> None:
    found = document(node("node1", cidrs=("10.244.1.0/24",)))
    assert found["frr"] == {}
    assert {each["object"] for each in found["problems"]} == {"Node node1"}


# --- passwords ------------------------------------------------------------------------------


def passwords(found: Object) -> dict[str, str]:
    """By neighbor."""
    words = (line.split() for line in found["frr"]["bgpd"].splitlines())
    return {
        each[1]: each[3] for each in words if each[:1] == ["neighbor"] and each[2] == "password"
    }


def test_secrets_are_read_where_secrets_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    objects = (node_with(BY_SECRET), secret("bgp", tor="k8s!md5"), secret("bgp", "x", tor="other"))
    assert passwords(document(*objects)) == {"192.0.2.1": "<masked>"}
    assert "Secret kube-system/bgp is not read" in capsys.readouterr().err
    assert passwords(document(*objects, given=SHOWN)) == {"192.0.2.1": "k8s!md5"}
    assert "is not read" not in capsys.readouterr().err
    other = Given(show_secrets=True, namespace="x")
    assert passwords(document(*objects, given=other)) == {"192.0.2.1": "other"}


def test_text_in_a_secret_comes_before_its_data() -> None:
    both = secret("bgp", tor="first") | {"stringData": {"tor": "second"}}
    found = document(node_with(BY_SECRET), both, given=SHOWN)
    assert passwords(found) == {"192.0.2.1": "second"}


def test_a_secret_that_is_not_there_is_named_in_its_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = document(node_with(BY_SECRET), given=SHOWN)
    assert passwords(found) == {"192.0.2.1": "<Secret:kube-system/bgp/tor>"}
    assert found["problems"] == []
    assert "the entry tor of Secret kube-system/bgp is not read" in capsys.readouterr().err
    long = {"name": "n" * 200, "key": "k" * 200}
    found = document(node_with({**BY_SECRET, "passwordsecretref": long}), given=SHOWN)
    assert len(passwords(found)["192.0.2.1"]) == 80


@pytest.mark.parametrize("data", [{"other": "eA=="}, {"tor": "=x="}, {"tor": 5}, {"tor": ""}])
def test_an_entry_that_is_not_there_or_no_password_leaves_out_its_router(data: Object) -> None:
    objects = (node_with(BY_SECRET), secret("bgp") | {"data": data})
    found = document(*objects, given=SHOWN)
    assert "192.0.2.1" not in found["frr"]["bgpd"]
    assert any("passwordsecretref" in each["field"] for each in found["problems"])


def test_a_secret_without_a_name_is_told_where_secrets_are_read() -> None:
    nameless = secret("bgp") | {"metadata": {}}
    assert document(NODE1, nameless)["problems"] == []
    (problem,) = document(NODE1, nameless, given=SHOWN)["problems"]
    assert problem["field"] == "metadata.name"


def test_the_file_of_passwords_is_read_where_secrets_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "passwords"
    routers = ("--peer-router-ips=192.0.2.1,192.0.2.2", "--peer-router-asns=65000,65001")
    flags = (*FLAGS, *routers, f"--peer-router-passwords-file={file}")
    assert {*passwords(document(NODE1, flags=flags)).values()} == {"<masked>"}
    assert f"{file} is not read" in capsys.readouterr().err
    assert run(NODE1, flags=flags, given=SHOWN) == (1, "")
    assert f"{file} cannot be read" in capsys.readouterr().err
    file.write_text(f"{encoded('one')},\n")
    assert passwords(document(NODE1, flags=flags, given=SHOWN)) == {"192.0.2.1": "one"}
    assert "is not read" not in capsys.readouterr().err.replace("cannot", "")


WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789!#%+,-./:=@_~*&'\"{}[]|>", max_size=20).map(
    lambda text: f"hunter2{text}"
)


@st.composite
def guarded(draw: st.DrawFn) -> tuple[list[Object], tuple[str, ...], list[str]]:
    """Objects and flags with passwords wherever they can stand, in order or not; the passwords."""
    words = [draw(WORDS) for _ in range(7)]
    wrong = draw(st.sampled_from(["", "plain", "long", "list", "number", "both"]))
    spoiled: Any = {
        "": encoded(words[0]),
        "plain": words[0],
        "long": encoded(words[0] * 9),
        "list": [encoded(words[0])],
        "number": {words[0]: 5},
        "both": encoded(words[0]),
    }[wrong]
    first: Object = {"remoteip": "192.0.2.1", "remoteasn": 65000, "password": spoiled}
    if wrong == "both":
        first |= {"passwordsecretref": {"name": "bgp", "key": "tor"}}
    annotations = peers(
        first,
        {"interface": "eth1", "password": encoded(words[1])},
        {"listenrange": "198.51.100.0/24", "remoteasn": 65000, "password": encoded(words[2])},
        {**BY_SECRET, "remoteip": "192.0.2.4"},
        draw(st.sampled_from([{}, {"remoteip": "192.0.2.5", "remoteasn": "no"}])),
    )
    if draw(st.booleans()):
        del annotations["kube-router.io/peers"]
    annotations |= {
        "kube-router.io/peer.ips": "192.0.2.6,192.0.2.7",
        "kube-router.io/peer.asns": "65000,65000",
        "kube-router.io/peer.passwords": ",".join(
            [encoded(words[3]), draw(st.sampled_from([encoded(words[4]), words[4]]))]
        ),
    }
    this = node("node1", "10.0.1.11", cidrs=("10.244.1.0/24",), annotations=annotations)
    that = node("node2", "10.0.1.12", cidrs=("10.244.2.0/24",), annotations=annotations)
    of_secret = secret("bgp", tor=words[5]) | draw(
        st.sampled_from([{}, {"stringData": {"tor": words[5]}}, {"stringData": words[5]}])
    )
    flags: tuple[str, ...] = ()
    if draw(st.booleans()):
        flags = ("--peer-router-ips=192.0.2.8", "--peer-router-asns=65000")
        flags += (f"--peer-router-passwords={encoded(words[6])}",)
    return [this, that, of_secret], flags, words


@hypothesis_settings(deadline=None, max_examples=60)
@hypothesis_given(guarded(), st.sampled_from(["json", "text"]))
def test_no_password_is_shown_unless_asked_for(
    cluster: tuple[list[Object], tuple[str, ...], list[str]], output: str
) -> None:
    objects, flags, words = cluster
    stderr = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", stderr)
        code, text = run(*objects, flags=(*FLAGS, *flags), output=output)
    assert code == 0
    assert "neighbor" in text
    told = text + stderr.getvalue()
    assert "hunter2" not in told
    for word in words:
        for length in range(8, len(encoded(word)) + 1, 4):
            assert encoded(word)[:length] not in told

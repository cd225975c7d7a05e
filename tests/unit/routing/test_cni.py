"""The CNI configuration: what is ours is written, what is the operator's stays."""

import json
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.routing.cni import CniChange, compile_cni

PATH = "/etc/cni/net.d/10-kuberouter.conflist"
FOUR, SIX = ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64")


def compiled(
    found: object, cidrs: Sequence[Any] = (FOUR, SIX), mtu: int | None = 1480, path: str = PATH
) -> CniChange:
    text = found if isinstance(found, str) or found is None else json.dumps(found)
    return compile_cni(text, path, "node1", cidrs, mtu)


def parsed(result: CniChange) -> Any:
    assert result.text is not None
    assert result.problems == ()
    return json.loads(result.text)


def conflist(**ipam: Any) -> dict[str, Any]:
    """As kube-router's manifests install it, with fields of an operator."""
    return {
        "cniVersion": "0.3.0",
        "name": "mynet",
        "x-operator": {"kept": [1, 2.5, None, True]},
        "plugins": [
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
            {
                "name": "kubernetes",
                "type": "bridge",
                "bridge": "kube-bridge",
                "hairpinMode": True,
                "ipam": {"type": "host-local", **ipam},
                "dns": {"nameservers": ["10.96.0.10"]},
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def ipam_of(found: Any) -> Any:
    (bridge,) = (each for each in found["plugins"] if each["type"] == "bridge")
    return bridge["ipam"]


RANGES = [[{"subnet": str(FOUR)}], [{"subnet": str(SIX)}]]


def test_a_list_gets_ranges_and_mtu_and_keeps_the_rest() -> None:
    before = conflist()
    after = parsed(compiled(before))
    assert ipam_of(after) == {"type": "host-local", "ranges": RANGES}
    (bridge,) = (each for each in after["plugins"] if each["type"] == "bridge")
    assert bridge.pop("mtu") == 1480
    del bridge["ipam"]["ranges"]
    assert after == before
    assert list(after) == list(before)
    assert [list(each) for each in after["plugins"]] == [list(each) for each in before["plugins"]]


def test_a_configuration_of_one_plugin() -> None:
    before = {"type": "bridge", "name": "x", "ipam": {"type": "host-local"}, "isGateway": True}
    after = parsed(compiled(before, path="/etc/cni/net.d/10-kuberouter.conf"))
    assert after == {
        "type": "bridge",
        "name": "x",
        "ipam": {"type": "host-local", "ranges": RANGES},
        "isGateway": True,
        "mtu": 1480,
    }


def test_what_is_right_is_not_written_again() -> None:
    first = compiled(conflist())
    assert first.text is not None
    assert compiled(first.text) == CniChange(None)
    assert compiled(json.dumps(json.loads(first.text))) == CniChange(None)


def test_without_an_mtu_that_of_the_operator_stays() -> None:
    before = conflist()
    before["plugins"][1]["mtu"] = 1234
    after = parsed(compiled(before, mtu=None))
    assert after["plugins"][1]["mtu"] == 1234
    assert parsed(compiled(before))["plugins"][1]["mtu"] == 1480


@pytest.mark.parametrize(
    ("ipam", "ranges"),
    [
        # The older form is folded, with what belongs to it.
        ({"subnet": str(FOUR)}, RANGES),
        (
            {"subnet": str(FOUR), "rangeStart": "10.244.1.9", "gateway": "10.244.1.1"},
            [
                [{"subnet": str(FOUR), "rangeStart": "10.244.1.9", "gateway": "10.244.1.1"}],
                [{"subnet": str(SIX)}],
            ],
        ),
        ({"subnet": "10.9.9.0/24", "gateway": "10.9.9.1", "ranges": RANGES}, RANGES),
        # What leads elsewhere is stale, beside others and alone.
        ({"ranges": [[{"subnet": "10.9.9.0/24"}]]}, RANGES),
        ({"ranges": [[{"subnet": "10.9.9.0/24"}], *RANGES]}, RANGES),
        ({"ranges": [[{"subnet": "10.9.9.0/24"}, {"subnet": str(FOUR)}]]}, RANGES),
        # The operator uses a part, or names the same network in another way.
        (
            {"ranges": [[{"subnet": "10.244.1.128/25", "rangeEnd": "10.244.1.200"}]]},
            [
                [{"subnet": "10.244.1.128/25", "rangeEnd": "10.244.1.200"}],
                [{"subnet": str(SIX)}],
            ],
        ),
        ({"ranges": [[{"subnet": "10.244.1.7/24"}]]}, [[{"subnet": "10.244.1.7/24"}], RANGES[1]]),
        # The order stays.
        ({"ranges": [RANGES[1]]}, [RANGES[1], RANGES[0]]),
        ({"ranges": None}, RANGES),
        ({"ranges": []}, RANGES),
    ],
)
def test_ranges(ipam: dict[str, Any], ranges: Any) -> None:
    found = ipam_of(parsed(compiled(conflist(**ipam))))
    assert found == {"type": "host-local", "ranges": ranges}


def test_what_else_host_local_is_told_stays() -> None:
    own = {"dataDir": "/run/cni", "routes": [{"dst": "0.0.0.0/0"}], "resolvConf": "/x"}
    found = ipam_of(parsed(compiled(conflist(subnet=str(FOUR), **own))))
    assert found == {"type": "host-local", **own, "ranges": RANGES}


def test_two_networks_of_a_family_are_one_choice() -> None:
    """host-local gives an address out of each set: a pod must not get two of a family."""
    more = ip_network("10.244.77.0/24")
    found = ipam_of(parsed(compiled(conflist(), (FOUR, more, SIX))))
    assert found["ranges"] == [[{"subnet": str(FOUR)}, {"subnet": str(more)}], RANGES[1]]


@pytest.mark.parametrize("suffix", ["conf", "conflist"])
def test_a_file_that_is_missing_is_made(suffix: str) -> None:
    path = f"/etc/cni/net.d/10-kuberouter.{suffix}"
    result = compiled(None, path=path)
    found = parsed(result)
    assert found["name"] == "kubernetes"
    bridge = found["plugins"][0] if suffix == "conflist" else found
    assert bridge["type"] == "bridge"
    assert bridge["bridge"] == "kube-bridge"
    assert bridge["mtu"] == 1480
    assert bridge["isDefaultGateway"] is True
    assert bridge["ipam"] == {"type": "host-local", "ranges": RANGES}
    assert ("plugins" in found) is (suffix == "conflist")
    if suffix == "conflist":
        assert found["plugins"][1]["type"] == "portmap"
    assert compiled(result.text, path=path) == CniChange(None)


@pytest.mark.parametrize("text", [None, "{}"])
def test_no_pod_cidr_yet(text: str | None) -> None:
    result = compiled(text, ())
    assert result.text is None
    (problem,) = result.problems
    assert (problem.object, problem.field) == ("Node node1", "spec.podCIDRs")
    assert "--allocate-node-cidrs" in problem.reason
    assert PATH in problem.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1"),
        ('{"type": "bridge",\n "ipam": }', "line 2"),
        ("[]", "no JSON object"),
        ("{}", "not bridge"),
        ('{"type": "ptp"}', "not bridge"),
        ('{"plugins": {}}', "no list"),
        ('{"plugins": [{"type": "ptp"}, "x"]}', "no plugin of type bridge"),
        ('{"type": "bridge", "ipam": []}', "no object"),
        ('{"type": "bridge", "ipam": {"ranges": [{"subnet": "10.0.0.0/8"}]}}', "list of lists"),
        ('{"type": "bridge", "ipam": {"ranges": 7}}', "list of lists"),
        ('{"type": "bridge", "ipam": {"ranges": [[{"subnet": "ten"}]]}}', "'ten'"),
        ('{"type": "bridge", "ipam": {"ranges": [[{}]]}}', "None"),
        ('{"type": "bridge", "type": "bridge"}', "twice"),
        ('{"type": "bridge", "x": NaN}', "NaN"),
        ('{"type": "bridge", "x": 1e999}', "JSON"),
        ("[" * 100_000, "deeply"),
    ],
)
def test_what_cannot_be_understood_is_left_as_it_is(text: str, reason: str) -> None:
    result = compiled(text)
    assert result.text is None
    (problem,) = result.problems
    assert (problem.object, problem.field) == ("Node node1", PATH)
    assert reason in problem.reason
    assert "left as it is" in problem.reason


def test_addresses_from_another_plugin() -> None:
    before = conflist()
    before["plugins"][1]["ipam"] = {"type": "whereabouts", "range": "10.7.0.0/16"}
    result = compiled(before)
    assert result.text is not None
    assert [(each.object, each.field) for each in result.problems] == [("Node node1", PATH)]
    assert "whereabouts" in result.problems[0].reason
    after = json.loads(result.text)
    assert after["plugins"][1]["ipam"] == before["plugins"][1]["ipam"]
    assert after["plugins"][1]["mtu"] == 1480


def test_text_of_any_script() -> None:
    before = conflist()
    before["name"] = "nétz"
    before["x-operator"] = "\ud800"
    result = compiled(before)
    assert result.text is not None
    assert json.loads(result.text.encode())["name"] == "nétz"
    assert json.loads(result.text)["x-operator"] == "\ud800"
    del before["x-operator"]
    again = compiled(before)
    assert again.text is not None
    assert "nétz" in again.text


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "ipam", "ranges", "subnet", "plugins", "mtu", "x"]),
            inner | st.sampled_from(["bridge", "host-local", "10.244.1.0/24"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(found=_JSON, is_list=st.booleans())
def test_any_json_is_merged_or_told(found: Any, is_list: bool) -> None:
    """Never an exception; and what was written is left alone from then on."""
    document = {"plugins": found} if is_list else found
    if isinstance(document, dict) and not is_list:
        document = {**document, "type": "bridge"}
    try:
        text = json.dumps(document, allow_nan=False)
    except ValueError:  # infinite
        return
    result = compiled(text)
    assert result.text is not None or result.problems or compiled(text).text is None
    if result.text is not None:
        assert compiled(result.text) == CniChange(None, result.problems)

"""A CNI file that is missing, made from a template."""

import json
from ipaddress import ip_network
from pathlib import Path

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.routing.cni import CniChange, compile_cni
from kube_router_py.routing.cni_template import read_template

PATH = "/etc/cni/net.d/10-kuberouter.conflist"
TEMPLATE = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {"type": "bridge", "bridge": "kube-bridge", "ipam": {"type": "host-local"}},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
    ],
}


def made(text: str | None, template: str | None) -> CniChange:
    return compile_cni(text, PATH, "node1", [ip_network("10.244.1.0/24")], 1400, template)


def test_what_it_has_stays_and_subnets_and_mtu_are_added() -> None:
    found = made(None, json.dumps(TEMPLATE))
    assert found.problems == ()
    assert found.text is not None
    bridge, tuning = json.loads(found.text)["plugins"]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24"}]]
    assert bridge["mtu"] == 1400
    assert tuning == TEMPLATE["plugins"][1]


def test_one_to_which_nothing_is_to_be_added_is_written_all_the_same() -> None:
    complete = made(None, json.dumps(TEMPLATE)).text
    assert complete is not None
    assert json.loads(made(None, complete).text or "") == json.loads(complete)


def test_a_file_that_is_there_is_not_made_anew() -> None:
    complete = made(None, json.dumps(TEMPLATE)).text
    other = json.dumps({**TEMPLATE, "name": "other"})
    assert made(complete, other) == CniChange(None)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("", "line 1"),
        ("{", "line 1"),
        ("[]", "no JSON object"),
        ('{"plugins": [{"type": "ptp"}]}', "no plugin of type bridge"),
    ],
)
def test_of_one_that_is_wrong_no_file_is_made(template: str, reason: str) -> None:
    found = made(None, template)
    assert found.text is None
    (problem,) = found.problems
    assert problem.field == PATH
    assert reason in problem.reason
    assert "template" in problem.reason
    assert "not made" in problem.reason


def test_reading_it(tmp_path: Path) -> None:
    file = tmp_path / "conflist"
    assert read_template("") is None
    assert read_template(str(file)) is None, "the ConfigMap need not be there"
    file.write_text("{}")
    assert read_template(str(file)) == "{}"
    file.write_bytes(b"\xff")
    with pytest.raises(KernelError, match=r"conflist"):
        read_template(str(file))
    with pytest.raises(KernelError, match=r"directory"):
        read_template(str(tmp_path))

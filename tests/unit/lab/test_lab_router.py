"""The router outside: what its daemons are told, and that they understand it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.lab.fabric import compile_topology
from kube_router_py.lab.gobgp import parse_rib, render_changes
from kube_router_py.lab.router import KINDS, RouterPlan, compile_router

NODE_ADDRESSES = {
    4: ("10.10.0.11", "10.10.0.12", "10.11.0.13"),
    6: ("fd10:10::b", "fd10:10::c", "fd10:11::d"),
}
FAMILIES = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}


def plan(kind: str, family: str) -> RouterPlan:
    topology = compile_topology(3, family, subnets=2, has_bgp=True)
    return compile_router(kind, topology, "/run/x")


def text_of(found: RouterPlan) -> str:
    return found.files[-1][1]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", KINDS)
def test_every_node_is_a_neighbor_in_each_family_and_the_client_is_announced(
    kind: str, family: str
) -> None:
    text = text_of(plan(kind, family))
    for version, addresses in NODE_ADDRESSES.items():
        for address in addresses:
            assert (address in text) == (version in FAMILIES[family])
    if kind != "gobgp":  # which is told once it runs
        assert ("10.20.0.0/24" in text) == (4 in FAMILIES[family])
        assert ("fd10:20::/64" in text) == (6 in FAMILIES[family])


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_where_the_daemons_look_for_them(kind: str) -> None:
    found = plan(kind, "ipv4")
    words = {word for daemon in found.daemons for word in daemon.argv}
    for name, _ in found.files:
        assert f"/run/x/{name}" in words


def path(gateway: str, *asns: int, preference: int | None = None) -> dict[str, Any]:
    """As gobgp prints it."""
    attributes: list[dict[str, Any]] = [
        {"type": 2, "as_paths": [{"segment_type": 2, "num": len(asns), "asns": list(asns)}]},
        {"type": 14 if ":" in gateway else 3, "nexthop": gateway},
    ]
    if preference is not None:
        attributes.append({"type": 5, "value": preference})
    return {"nlri": {"prefix": "any"}, "attrs": attributes}


def test_gobgp_equally_good_ways_are_taken_side_by_side() -> None:
    rib = {
        "10.96.0.1/32": [path("10.10.0.12", 64512), path("10.10.0.11", 64512)],
        "10.96.0.2/32": [path("10.10.0.12", 64512, 64512), path("10.10.0.11", 64512)],
        "10.96.0.3/32": [path("10.10.0.12", 64512, preference=0), path("10.10.0.11", 64512)],
        "fd10:96::1/128": [path("fd10:10::b", 64512)],
        "10.20.0.0/24": [path("0.0.0.0")],
    }
    assert parse_rib(json.dumps(rib)) == {
        "10.96.0.1/32": ("10.10.0.11", "10.10.0.12"),
        "10.96.0.2/32": ("10.10.0.11",),
        "10.96.0.3/32": ("10.10.0.11",),
        "fd10:96::1/128": ("fd10:10::b",),
    }
    assert parse_rib("") == {}


def test_gobgp_only_what_has_changed_is_laid() -> None:
    before = {"10.96.0.1/32": ("a", "b"), "10.96.0.2/32": ("a",), "10.96.0.3/32": ("a",)}
    after = {"10.96.0.1/32": ("b",), "10.96.0.2/32": ("a",), "10.96.0.4/32": ("a", "b")}
    assert render_changes(before, after).splitlines() == [
        "route del 10.96.0.3/32 proto bgp",
        "route replace 10.96.0.1/32 proto bgp nexthop via b",
        "route replace 10.96.0.4/32 proto bgp nexthop via a nexthop via b",
    ]
    assert render_changes(after, after) == ""


def test_several_ways_are_used_side_by_side() -> None:
    assert "maximum-paths 8" in text_of(plan("frr", "ipv4"))
    assert "merge paths on limit 8;" in text_of(plan("bird", "ipv4"))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_bird_understands_it(family: str, tmp_path: Path) -> None:
    program = shutil.which("bird", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        pytest.skip("missing capability: bird (.ci/setup installs it)")
    file = tmp_path / "bird.conf"
    file.write_text(text_of(plan("bird", family)))
    done = subprocess.run(
        [program, "-p", "-c", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_frr_understands_it(family: str, tmp_path: Path) -> None:
    program = Path("/usr/lib/frr/bgpd")
    if not program.exists():
        pytest.skip("missing capability: /usr/lib/frr/bgpd (Debian package frr)")
    file = tmp_path / "bgpd.conf"
    file.write_text(text_of(plan("frr", family)))
    done = subprocess.run(
        [str(program), "-C", "-S", "-f", str(file), "-i", str(tmp_path / "pid")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "config line" not in done.stdout + done.stderr

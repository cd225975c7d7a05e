"""The sandbox: what an agent in it can see, write and do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.lab import sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")

PROBE = """\
import json, os
def try_to_write(path):
    try:
        with open(path, "w") as file:
            file.write("text")
    except OSError as error:
        return error.strerror
    return "written"
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "written": {path: try_to_write(path) for path in %r},
    "run": os.listdir("/run"),
    "effective": int(status["CapEff"], 16),
    "bounding": int(status["CapBnd"], 16),
    "no_new_privs": status["NoNewPrivs"],
}))
"""


def run(tmp_path: Path, paths: list[str], **changes: Any) -> dict[str, Any]:
    for name in ("root", "volume", "deep"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "lock").touch()

    def mounted(source: str, target: str, read_only: bool = False) -> dict[str, Any]:
        return {"source": str(tmp_path / source), "target": target, "read_only": read_only}

    spec = {
        "root": str(tmp_path / "root"),
        "netns": "/proc/self/ns/net",
        "argv": [sys.executable, "-c", PROBE % paths],
        "env": {"PATH": "/usr/bin:/bin"},
        "mounts": [
            mounted("volume", "/tmp"),
            mounted("volume", "/data", read_only=True),
            mounted("deep", "/etc/made-for-this-test/deep"),
            mounted("lock", "/run/xtables.lock"),
        ],
        "keep": [sys.prefix, sys.base_prefix],
        "capabilities": ["NET_ADMIN", "NET_RAW"],
        "read_only_sysctl": True,
        "no_new_privileges": True,
        **changes,
    }
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    argv = [sys.executable, "-I", "-S", str(sandbox.__file__), str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_only_its_own_volumes_can_be_written(tmp_path: Path) -> None:
    forbidden = ["/x", "/etc/x", "/usr/x", "/data/x", "/proc/sys/kernel/hostname"]
    allowed = ["/tmp/x", "/etc/made-for-this-test/deep/x", "/run/xtables.lock"]
    found = run(tmp_path, [*forbidden, *allowed])
    assert found["written"] == {
        **dict.fromkeys(forbidden, "Read-only file system"),
        **dict.fromkeys(allowed, "written"),
    }
    assert (tmp_path / "volume" / "x").read_text() == "text"
    assert found["run"] == ["xtables.lock"]
    assert not Path("/etc/made-for-this-test").exists()


def test_it_has_exactly_the_capabilities_it_was_given(tmp_path: Path) -> None:
    wanted = sum(1 << sandbox.CAPABILITIES.index(name) for name in ("NET_ADMIN", "NET_RAW"))
    found = run(tmp_path, [])
    assert found["effective"] == found["bounding"] == wanted
    assert found["no_new_privs"] == "1"
    everything = run(tmp_path, [], capabilities=None, no_new_privileges=False)
    assert everything["effective"] > wanted
    assert everything["no_new_privs"] == "0"


def test_a_restart_finds_its_volume_as_it_left_it(tmp_path: Path) -> None:
    run(tmp_path, ["/tmp/kept"])
    assert run(tmp_path, ["/tmp/kept"])["written"] == {"/tmp/kept": "written"}
    assert (tmp_path / "volume" / "kept").exists()

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
        "name": "probe",
        "image": "/",
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
    file.write_text(json.dumps([spec]))
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


def chain(tmp_path: Path, *programs: str, again: bool = False) -> subprocess.CompletedProcess[str]:
    """Init containers and the container after them, each a line of Python in a root of its own."""
    (tmp_path / "root").mkdir()
    (tmp_path / "volume").mkdir()
    specs = [
        {
            "name": f"container{number}",
            "image": "/",
            "root": str(tmp_path / "root"),
            "netns": "/proc/self/ns/net",
            "argv": [sys.executable, "-c", program],
            "env": {"PATH": "/usr/bin:/bin"},
            "mounts": [{"source": str(tmp_path / "volume"), "target": "/tmp", "read_only": False}],
            "keep": [sys.prefix, sys.base_prefix],
            "capabilities": ["NET_ADMIN"] if number else [],
            "read_only_sysctl": True,
            "no_new_privileges": True,
        }
        for number, program in enumerate(programs)
    ]
    file = tmp_path / "specs.json"
    file.write_text(json.dumps(specs))
    argv = [sys.executable, "-I", "-S", str(sandbox.__file__), str(file)]
    argv += ["again"] if again else []
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


HELD = "open('/tmp/%s', 'w').write(open('/proc/self/status').read().split('CapEff:')[1].split()[0])"


def test_init_containers_come_first_and_with_capabilities_of_their_own(tmp_path: Path) -> None:
    done = chain(tmp_path, HELD % "init", "print(open('/tmp/init').read());" + HELD % "agent")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout, 16) == 0
    held = int((tmp_path / "volume" / "agent").read_text(), 16)
    assert held == 1 << sandbox.CAPABILITIES.index("NET_ADMIN")


def test_a_container_that_is_started_again_has_no_init_containers(tmp_path: Path) -> None:
    done = chain(tmp_path, "print('first')", "print('second')", again=True)
    assert (done.returncode, done.stdout) == (0, "second\n"), done.stderr


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_after_an_init_container_that_fails_there_is_nothing(tmp_path: Path, program: str) -> None:
    done = chain(tmp_path, program, "print('the agent')")
    assert done.returncode == 1
    assert "init container container0 failed with exit code" in done.stderr
    assert done.stdout == ""


def test_the_root_may_be_that_of_an_image(tmp_path: Path) -> None:
    image = tmp_path / "image"
    for name in ("etc", "usr", "proc", "dev", "run", "tmp", "sys"):
        (image / name).mkdir(parents=True)
    for name in ("lib", "lib64"):
        (image / name).symlink_to(f"usr/{name}")
    (image / "etc" / "only-here").write_text("text")
    changes = {
        "image": str(image),
        "argv": [sys.executable, "-c", SHOWN],
        "keep": ["/usr", sys.prefix, sys.base_prefix],  # the interpreter and its libraries
    }
    found = run(tmp_path, [], **changes)
    assert found == {"etc": ["made-for-this-test", "only-here"], "is_proc": True, "null": True}


SHOWN = """\
import json, os
print(json.dumps({
    "etc": sorted(os.listdir("/etc")),
    "is_proc": os.path.exists("/proc/self/status"),
    "null": os.path.exists("/dev/null"),
}))
"""

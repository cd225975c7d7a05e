"""The agent's image: what is in it, what is not, and a lab whose agents run in it."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kube_router_py
from kube_router_py.cni_plugins import USUAL

pytestmark = [pytest.mark.image, pytest.mark.timeout(1500)]

REPOSITORY = Path(__file__).parents[2]
LAB_DEADLINE_S = 600
# What it was when this was written, and a fifth more. The base is a third of it.
LARGEST_BYTES = 430 << 20


def in_image(builder: ModuleType, stage: Any, *argv: str) -> str:
    return str(builder.run(stage.root, list(argv), stage.env))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("kube-router-py", "--version"), rf"^kube-router-py {kube_router_py.__version__}$"),
        (("kube-router-py", "install-cni", "--help"), r"^Usage: kube-router-py install-cni"),
        (("/usr/lib/frr/bgpd", "--version"), r"^bgpd version 8\.4"),
        (("/usr/lib/frr/zebra", "--version"), r"^zebra version 8\.4"),
        (("/usr/lib/frr/bfdd", "--version"), r"^bfdd version 8\.4"),
        (("ipset", "--version"), r"^ipset v7"),
        (("iptables-nft", "--version"), r"\(nf_tables\)$"),
        (("ip6tables-nft-restore", "--version"), r"\(nf_tables\)$"),
        (("iptables-legacy", "--version"), r"\(legacy\)$"),
        (("ip6tables-legacy-save", "--version"), r"\(legacy\)$"),
        (("nft", "--version"), r"^nftables v1"),
        (("ip", "-V"), r"^ip utility"),
        (("modprobe", "--version"), r"^kmod version"),
        (("conntrack", "--version"), r"^conntrack v1"),
        *((((f"/usr/lib/cni/{plugin}",)), rf"^CNI {plugin} plugin") for plugin in USUAL),
    ],
    ids=lambda value: value[0].rpartition("/")[2] if isinstance(value, tuple) else None,
)
def test_the_programs_run(
    argv: tuple[str, ...], said: str, builder: ModuleType, stage: Any
) -> None:
    assert re.search(said, in_image(builder, stage, *argv), re.MULTILINE)


def test_it_starts_the_agent(builder: ModuleType, stage: Any) -> None:
    said = in_image(builder, stage, *stage.entry_point, "--help")
    assert "run the agent on this node" in said


def test_the_libraries_of_iptables_are_found(builder: ModuleType, stage: Any) -> None:
    """python-iptables looks for them by name, and without a compiler in fewer ways."""
    program = "from iptc import ip4tc, xtables; print(ip4tc._libiptc, xtables._lib_xtables)"
    said = in_image(builder, stage, "python3", "-c", program)
    assert re.search(r"<CDLL 'libip4tc\S*'.*<CDLL 'libxtables\S*'", said), said


def test_what_needs_a_kernel_with_ipvs_to_run_is_there(root: Path) -> None:
    assert os.access(root / "usr/sbin/ipvsadm", os.X_OK)


def test_python_packages_are_those_of_the_lock_file(builder: ModuleType, stage: Any) -> None:
    program = (
        "import importlib.metadata as found, json;"
        "print(json.dumps({each.name.lower().replace('_', '-'): each.version"
        " for each in found.distributions()}))"
    )
    installed = json.loads(in_image(builder, stage, "python3", "-c", program).splitlines()[-1])
    assert installed.pop("kube-router-py") == kube_router_py.__version__
    locked = builder.locked((REPOSITORY / "image/run.lock").read_text())
    assert installed == {name: version for name, (version, where) in locked.items() if not where}


def test_what_installs_and_builds_is_not_in_it(root: Path) -> None:
    programs = {
        path.name
        for directory in ("usr/bin", "usr/sbin", "usr/local/bin", "opt/kube-router-py/bin")
        for path in (root / directory).iterdir()
    }
    for name in ("gcc", "cc", "ld", "as", "make", "pip", "pip3", "python3-config"):
        assert name not in programs
    packages = (root / "var/lib/dpkg/status").read_text()
    for package in ("gcc", "libc6-dev", "python3-dev", "python3-pip", "python3-venv"):
        assert f"\nPackage: {package}\n" not in packages
    assert not list((root / "opt/kube-router-py").glob("lib/*/site-packages/pip"))
    for directory in ("var/lib/apt/lists", "var/cache/apt/archives", "root/.cache", "tmp", "run"):
        left = [path for path in (root / directory).rglob("*") if path.is_file()]
        assert [path for path in left if path.name not in ("lock",)] == []


def test_of_cni_plugins_and_of_frr_only_what_is_run_is_in_it(root: Path) -> None:
    assert sorted(os.listdir(root / "usr/lib/cni")) == sorted(USUAL)
    assert sorted(os.listdir(root / "usr/lib/frr")) == ["bfdd", "bgpd", "zebra"]


def test_nothing_of_this_machine_is_in_it(root: Path) -> None:
    """How the packages came here is the engine's business."""
    assert not list((root / "mnt").iterdir())
    for name in ("etc/pip.conf", "root/.config", "root/.pip", "root/.netrc"):
        assert not (root / name).exists()
    settings = (root / "etc/apt/apt.conf.d").iterdir()
    assert not any("proxy" in path.read_text().lower() for path in settings)


def test_its_size(root: Path) -> None:
    done = subprocess.run(
        ["du", "--summarize", "--bytes", "--one-file-system", str(root)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.split()[0]) < LARGEST_BYTES


def test_byte_code_is_there(root: Path) -> None:
    (package,) = (root / "opt/kube-router-py").glob("lib/*/site-packages/kube_router_py")
    sources = {path.relative_to(package) for path in package.rglob("*.py")}
    compiled = {
        path.parent.parent.relative_to(package) / f"{path.name.partition('.')[0]}.py"
        for path in package.rglob("__pycache__/*.pyc")
    }
    assert sources == compiled


def test_programs_of_root_that_anybody_may_run_are_those_of_the_base(root: Path) -> None:
    """Set-user-id programs: with no_new_privs they are none, but who knows who runs the image."""
    found = {
        path.name
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & stat.S_ISUID
    }
    usual = {"chfn", "chsh", "gpasswd", "mount", "newgrp", "passwd", "su", "umount"}
    assert found <= usual


# --- agents in it ---------------------------------------------------------------------------------

LOOK = """\
import json, os, subprocess, sys
from pathlib import Path

node = sys.argv[1]
daemons, agent = {}, None
for process in Path("/proc").glob("[0-9]*"):
    try:
        root = os.readlink(process / "root")
        words = (process / "cmdline").read_bytes().decode().split("\\0")
        status = (process / "status").read_text()
    except OSError:
        continue
    if not root.endswith(f"/nodes/{node}/rootfs"):
        continue
    user = int(status.split("Uid:")[1].split()[0])
    if words[0].startswith("/usr/lib/frr/"):
        daemons[words[0].rpartition("/")[2]] = user
    elif "/opt/kube-router-py/bin/kube-router-py" in words[:2] and "--run-router=true" in words:
        agent = process.name
inside = ["nsenter", "--target", agent, "--mount", "--net", "--pid", "--root"]
inside += ["env", "--chdir=/", "-i", "PATH=/opt/kube-router-py/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


def run(*argv):
    done = subprocess.run([*inside, *argv], capture_output=True, text=True)
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


logs = Path(os.environ["LAB_LOGS"], f"agent-{node}.log").read_text()
environment = Path("/proc", agent, "environ").read_bytes().decode().split("\\0")
inside += [each for each in environment if each.startswith(("NODE_NAME=", "KUBE", "POD_NAME"))]
flags = Path("/proc", agent, "cmdline").read_bytes().decode().split("\\0")
flags = [flag for flag in flags if flag.startswith("--")]
print(json.dumps({
    "daemons": daemons,
    "log": logs,
    "status": run("kube-router-py", "status", "--output", "json"),
    "doctor": run("kube-router-py", "doctor", "--output", "json", *flags),
    "packages": run("python3", "-c", "import kube_router_py; print(kube_router_py.__file__)"),
}))
"""


@pytest.fixture(scope="module")
def seen(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What there was to see on node1 of a lab whose agents ran in the image."""
    directory = tmp_path_factory.mktemp("lab")
    program = directory / "look.py"
    program.write_text(LOOK)
    argv = [sys.executable, "-m", "kube_router_py", "lab", "--vm=never", "--router=frr"]
    argv += ["--image-root", str(root), "--agent-arg=--run-service-proxy=false"]
    argv += ["-f", str(REPOSITORY / "docs/examples/website.yaml")]
    done = subprocess.run(
        [*argv, "--", sys.executable, str(program), "node1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        timeout=LAB_DEADLINE_S,
        env={**os.environ, "LAB_OUT": str(directory)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_agents_of_a_lab_run_in_it(seen: dict[str, Any]) -> None:
    """The lab itself has waited until they are ready and the router outside has learned routes."""
    assert seen["packages"]["out"].startswith("/opt/kube-router-py/")
    status = json.loads(seen["status"]["out"])
    assert status["ready"] is True, status


def test_the_daemons_of_frr_are_its_own_and_not_roots(seen: dict[str, Any]) -> None:
    assert seen["daemons"].keys() >= {"bgpd", "zebra"}
    assert 0 not in seen["daemons"].values()


def test_its_plugins_were_installed_on_the_node(seen: dict[str, Any]) -> None:
    said = seen["log"].splitlines()
    for plugin in USUAL:
        assert any(line.split()[:2] == [plugin, "installed"] for line in said), said[:20]


def test_doctor_finds_nothing_wrong_before_and_after_the_start(seen: dict[str, Any]) -> None:
    assert "node node1: nothing is wrong" in seen["log"].splitlines()
    assert seen["doctor"]["code"] == 0, seen["doctor"]
    assert json.loads(seen["doctor"]["out"])["findings"] == []

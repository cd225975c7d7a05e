"""Finding a pod's network namespace: cgroups' names, a made-up /proc, a made-up crictl."""

import os
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.errors import KernelError
from kube_router_py.kernel import pod_netns
from kube_router_py.kernel.pod_netns import CrictlFinder, PodNamespaces, ProcFinder, names_pod

UID = "6b1d2c3e-aaaa-4000-8000-00000000000a"
SYSTEMD = UID.replace("-", "_")
OTHER = "6b1d2c3e-aaaa-4000-8000-00000000000b"


@pytest.mark.parametrize(
    "cgroups",
    [
        # Version 2, systemd: containerd, CRI-O, Docker (cri-dockerd).
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice"
        "/cri-containerd-0123.scope\n",
        f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD}.slice"
        "/crio-0123.scope/container\n",
        f"0::/kubepods.slice/kubepods-pod{SYSTEMD}.slice/docker-0123.scope\n",
        # Version 2, cgroupfs.
        f"0::/kubepods/besteffort/pod{UID}/0123\n",
        f"0::/kubepods/pod{UID}/crio-0123\n",
        # Seen from within a cgroup namespace, as a container has one.
        f"0::/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD}.slice/x.scope\n",
        # Version 1 and the hybrid of both.
        f"12:cpu,cpuacct:/kubepods/burstable/pod{UID}/0123\n1:name=systemd:/\n",
        f"5:memory:/kubepods.slice/kubepods-pod{SYSTEMD}.slice/docker-0123.scope\n0::/\n",
        # containerd's way to write systemd cgroups of version 1; a kubelet with a cgroup root;
        # a kubelet in a container (kind).
        f"9:pids:/system.slice/containerd.service/kubepods-pod{SYSTEMD}.slice:cri-containerd:01\n",
        f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SYSTEMD}.slice/x.scope\n",
        f"0::/system.slice/docker-9.scope/kubelet/kubepods/pod{UID}/0123\n",
    ],
)
def test_the_layouts_of_kubelets_and_runtimes(cgroups: str) -> None:
    assert names_pod(cgroups, UID)
    assert not names_pod(cgroups, OTHER)
    assert not names_pod(cgroups, UID[:-1])


@pytest.mark.parametrize(
    "cgroups",
    [
        "",
        "0::/\n",
        "0::/system.slice/kubelet.service\n",
        f"0::/system.slice/{UID}.service\n",
        f"0::/kubepods/pod{UID}0/0123\n",
        f"0::/kubepods/xpod{UID}/0123\n",
        f"0::/kubepods/pod{UID}.scope/0123\n",
        "garbage without colons",
    ],
)
def test_what_is_not_in_the_pod(cgroups: str) -> None:
    assert not names_pod(cgroups, UID)


@given(st.text(), st.uuids(), st.uuids())
def test_any_text_is_read_and_pods_are_told_apart(text: str, uid: object, other: object) -> None:
    names_pod(text, str(uid))
    cgroups = f"0::/kubepods/pod{uid}/0123\n"
    assert names_pod(cgroups, str(other)) == (uid == other)


class Proc:
    """A directory like /proc. Namespaces are files; our own is this process's real one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "self-made").mkdir()  # /proc has more than processes

    def process(
        self, pid: int, uid: str, started: int, *, netns: str | Path, name: str = "sh"
    ) -> None:
        at = self.root / str(pid)
        (at / "ns").mkdir(parents=True)
        (at / "cgroup").write_text(f"0::/kubepods/pod{uid}/0123\n")
        fields = " ".join(["S", *["0"] * 18, str(started), "0"])
        (at / "stat").write_text(f"{pid} ({name}) {fields}\n")
        target = self.root / netns if isinstance(netns, str) else netns
        if isinstance(netns, str):
            target.write_text(netns)
        (at / "ns" / "net").symlink_to(target)

    def end(self, pid: int) -> None:
        for each in ("cgroup", "stat", "ns/net"):
            (self.root / str(pid) / each).unlink()


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def content(descriptor: int | None) -> str:
    assert descriptor is not None
    try:
        return os.read(descriptor, 100).decode()
    finally:
        os.close(descriptor)


OWN = Path("/proc/self/ns/net")


def test_the_oldest_process_of_the_pod_is_its_sandbox(proc: Proc) -> None:
    proc.process(300, UID, 50, netns="of a child in a namespace of its own")
    proc.process(900, UID, 20, netns="the sandbox", name="a) (b")
    proc.process(100, OTHER, 10, netns="another pod")
    finder = ProcFinder(proc.root)
    assert content(finder.open(UID)) == "the sandbox"
    assert content(finder.open(UID)) == "the sandbox"
    assert content(finder.open(OTHER)) == "another pod"
    assert finder.open("0000") is None


def test_a_pod_in_the_hosts_network_has_none(proc: Proc) -> None:
    proc.process(300, UID, 50, netns=OWN)
    assert ProcFinder(proc.root).open(UID) is None


def test_a_sandbox_that_was_made_anew_is_found_anew(proc: Proc) -> None:
    proc.process(300, UID, 50, netns="first")
    finder = ProcFinder(proc.root)
    assert content(finder.open(UID)) == "first"
    proc.end(300)
    assert finder.open(UID) is None
    proc.process(301, UID, 90, netns="second")
    assert content(finder.open(UID)) == "second"


def test_a_process_number_that_passed_to_another_pod_is_not_taken_for_it(proc: Proc) -> None:
    proc.process(300, UID, 50, netns="first")
    finder = ProcFinder(proc.root)
    assert content(finder.open(UID)) == "first"
    (proc.root / "300" / "cgroup").write_text(f"0::/kubepods/pod{OTHER}/0123\n")
    assert finder.open(UID) is None


def test_what_is_not_wanted_any_more_is_forgotten(proc: Proc) -> None:
    proc.process(300, UID, 50, netns="first")
    finder = ProcFinder(proc.root)
    assert content(finder.open(UID)) == "first"
    proc.process(200, UID, 10, netns="older")
    assert content(finder.open(UID)) == "first", "remembered"
    finder.forget({OTHER})
    assert content(finder.open(UID)) == "older"


def test_descriptors_are_not_leaked(proc: Proc) -> None:
    proc.process(300, UID, 50, netns=OWN)
    finder = ProcFinder(proc.root)
    finder.open(UID)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert finder.open(UID) is None
    assert len(os.listdir("/proc/self/fd")) == before


# --- the runtime ----------------------------------------------------------------------------------


_CRICTL = """#!{python}
import json, sys
said = json.load(open({answers!r}))
command = next(each for each in ("pods", "inspectp") if each in sys.argv)
open({asked!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
if command not in said:
    sys.exit("rpc error: connection refused")
print(said[command] if isinstance(said[command], str) else json.dumps(said[command]))
"""


class Crictl:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.program = root / "crictl"
        self._asked = root / "asked"
        script = _CRICTL.format(
            python=sys.executable, answers=str(root / "answers"), asked=str(self._asked)
        )
        self.program.write_text(script)
        self.program.chmod(0o755)

    def answers(self, **said: object) -> CrictlFinder:
        (self.root / "answers").write_bytes(msgspec.json.encode(said))
        return CrictlFinder("/run/crio/crio.sock", str(self.program), str(self.root / "proc"))

    def asked(self) -> list[str]:
        return self._asked.read_text().splitlines()


@pytest.fixture
def crictl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crictl:
    # As long as Python may take to start where the machine has other work.
    monkeypatch.setattr(pod_netns, "_CRICTL_TIMEOUT_S", 60.0)
    return Crictl(tmp_path)


def sandbox(path: object = None, pid: int = 0) -> dict[str, object]:
    namespaces = [{"type": "pid"}, {"type": "network", "path": str(path) if path else ""}]
    return {"info": {"pid": pid, "runtimeSpec": {"linux": {"namespaces": namespaces}}}}


ONE = {"items": [{"id": "abc"}]}


def test_the_runtime_says_where_the_namespace_is(crictl: Crictl) -> None:
    path = crictl.root / "netns"
    path.write_text("the pod's")
    assert content(crictl.answers(pods=ONE, inspectp=sandbox(path)).open(UID)) == "the pod's"
    asked = crictl.asked()
    assert all("--runtime-endpoint unix:///run/crio/crio.sock" in each for each in asked)
    assert f"--label io.kubernetes.pod.uid={UID}" in asked[0]
    assert "--state ready" in asked[0]
    assert asked[1].endswith(" abc")


def test_the_runtime_names_a_process_only(crictl: Crictl) -> None:
    at = crictl.root / "proc/77/ns"
    at.mkdir(parents=True)
    (at / "net").write_text("by process")
    assert content(crictl.answers(pods=ONE, inspectp=sandbox(pid=77)).open(UID)) == "by process"


@pytest.mark.parametrize("items", [{"items": []}, {"items": None}, {}])
def test_the_runtime_does_not_know_the_pod(crictl: Crictl, items: object) -> None:
    assert crictl.answers(pods=items).open(UID) is None


def test_a_pod_in_the_hosts_network_by_the_runtime(crictl: Crictl) -> None:
    assert crictl.answers(pods=ONE, inspectp=sandbox(OWN)).open(UID) is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "connection refused"),
        ({"pods": "not JSON"}, "crictl pods"),
        ({"pods": ONE}, "crictl inspectp"),
        ({"pods": ONE, "inspectp": sandbox("/nonexistent/netns")}, "mountPropagation"),
    ],
)
def test_a_runtime_that_cannot_be_asked(
    crictl: Crictl, said: dict[str, object], reason: str
) -> None:
    with pytest.raises(KernelError, match=reason):
        crictl.answers(**said).open(UID)


def test_all_finders_are_asked_and_all_reasons_told(proc: Proc, crictl: Crictl) -> None:
    path = crictl.root / "netns"
    path.write_text("the pod's")
    working = crictl.answers(pods=ONE, inspectp=sandbox(path))
    assert content(PodNamespaces([ProcFinder(proc.root), working]).open(UID)) == "the pod's"
    broken = CrictlFinder("/run/x.sock", str(crictl.root / "no-crictl"))
    with pytest.raises(KernelError, match="hostPID: true") as caught:
        PodNamespaces([ProcFinder(proc.root), broken]).open(UID)
    assert "no-crictl" in str(caught.value)
    assert content(PodNamespaces([broken, working]).open(UID)) == "the pod's"

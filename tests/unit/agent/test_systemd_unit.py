"""The systemd unit: systemd takes it, and it may do what the agent does with any flags."""

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from kube_router_py.kernel import table_names
from kube_router_py.kernel.frr_preflight import lacking_capabilities
from kube_router_py.lab.sandbox import CAPABILITIES
from kube_router_py.observe.journal import IDENTIFIER, SOCKET
from kube_router_py.options import Options, parse

MANIFESTS = Path(__file__).parents[3] / "manifests"
UNIT = MANIFESTS / "systemd" / "kube-router-py.service"
PROGRAM = "/usr/local/bin/kube-router-py"


def service() -> Any:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text().replace("\\\n", " "))
    return unit["Service"]


def test_it_starts_the_agent_and_spares_the_data_plane() -> None:
    unit = service()
    assert unit["Type"] == "notify"
    assert unit["ExecStart"] == PROGRAM
    assert unit["Restart"] == "always"
    assert "RestartPreventExitStatus" not in unit, "a file or a port may be there later"
    assert unit["KillMode"] == "process", "FRR's daemons go on"
    assert unit["RuntimeDirectoryPreserve"] == "yes"
    environ = dict([unit["Environment"].split("=", 1)])
    assert parse([], environ).kubeconfig == "/etc/kubernetes/kube-router-py.conf"


def test_it_may_run_frr() -> None:
    # bfdd's socket for echo packets; it exits where it gets none.
    assert "AF_PACKET" in service()["RestrictAddressFamilies"].split()
    names = [name.removeprefix("CAP_") for name in service()["CapabilityBoundingSet"].split()]
    held = sum(1 << CAPABILITIES.index(name) for name in names)
    assert not lacking_capabilities(f"CapEff:\t{held:016x}")


def test_the_cni_files_directory_is_there_before_everything_else_is_read_only() -> None:
    """A path that is missing when the unit starts stays read-only with what is above it."""
    written = {path.removeprefix("-") for path in service()["ReadWritePaths"].split()}
    directory = str(Path(Options().cni_conf_file).parent)
    assert directory in written
    # +: out of what locks up the agent; -: where it cannot be made there may be no router.
    assert service()["ExecStartPre"] == f"+-/bin/mkdir -p {directory}"


def test_it_may_name_its_routing_tables() -> None:
    directory = Path(table_names.DIRECTORY, table_names.FILE).parent
    assert f"-{directory}" in service()["ReadWritePaths"].split(), "where the package has made it"


def test_it_reaches_its_sockets_and_is_known_to_the_journal() -> None:
    assert service()["SyslogIdentifier"] == IDENTIFIER
    directory = service()["RuntimeDirectory"]
    assert Options().agent_socket.startswith(f"/run/{directory}/")
    assert Options().frr_dir.startswith(f"/run/{directory}/")
    writable = service()["ReadWritePaths"].split()
    assert Path(writable[0]) in SOCKET.parents


def test_it_may_do_what_any_daemonset_may() -> None:
    """Flags make an overlay of it; there is but one unit."""
    held = set(service()["CapabilityBoundingSet"].split())
    asked = set()
    for path in MANIFESTS.glob("*/**/daemonset.yaml"):
        for container in yaml.safe_load(path.read_text())["spec"]["template"]["spec"]["containers"]:
            capabilities = container.get("securityContext", {}).get("capabilities", {})
            asked |= {f"CAP_{name}" for name in capabilities.get("add", ())}
    assert "CAP_NET_ADMIN" in asked
    assert asked <= held


def test_systemd_takes_it(tmp_path: Path) -> None:
    """Nothing unknown, nothing ignored; systemd looks for the program, which is elsewhere here."""
    text = UNIT.read_text()
    assert text.count(f"ExecStart={PROGRAM}\n") == 1
    unit = tmp_path / UNIT.name
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]

    def complaints(start: str) -> str:
        unit.write_text(text.replace(f"ExecStart={PROGRAM}", f"ExecStart={start}"))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return f"{done.stdout}{done.stderr}" or f"exit code {done.returncode}"

    assert complaints(sys.executable) == "exit code 0"
    assert "'Nonsense'" in complaints(f"{sys.executable}\nNonsense=yes")


def test_its_page_tells_how_far_it_is_locked_up() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    (exposure,) = re.findall(r"exposure level for kube-router-py.service: ([0-9.]+)", done.stdout)
    page = (MANIFESTS.parent / "docs" / "systemd.md").read_text()
    (told,) = re.findall(r"exposure level of ([0-9]+\.[0-9])", page)
    # Versions of systemd judge a little differently.
    assert abs(float(told) - float(exposure)) <= 0.5

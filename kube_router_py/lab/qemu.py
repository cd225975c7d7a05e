"""QEMU with a stock Debian kernel that has IPVS, for kube_router_py.lab.vm.

virtme-ng boots it with this machine's root file system mounted read-only: writes go to memory and
vanish.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from kube_router_py.errors import PreflightError

REMEDY = (
    "install them: apt-get install linux-image-amd64 qemu-system-x86 busybox-static file udev, "
    "and the lab extra of pip"
)

# Coldplug would load these for the emulated devices; nothing here uses them and each costs time.
UNUSED_MODULES = "kvm,kvm_amd,kvm_intel,powernow_k8,psmouse,iTCO_wdt,i6300esb,pcspkr,sr_mod,ahci"

# The 9p mount made at boot asks the host for every block again. A second one that caches serves
# what programs are loaded from; it is about twice as fast to start Python from.
PROLOGUE = """\
mkdir -p /run/fast /run/home
mount -t 9p -o ro,version=9p2000.L,trans=virtio,cache=loose,msize=512000 fastroot /run/fast
for dir in {cached}; do mount --bind "/run/fast$dir" "$dir"; done
mount -o remount,rw /sys 2>/dev/null
ip link set lo up
ulimit -n 65536
touch {control}/started
"""


def kvm_works() -> bool:
    """/dev/kvm alone proves nothing: without the CPU flag guests have been seen to hang on it."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    flags = Path("/proc/cpuinfo").read_text()
    return " vmx" in flags or " svm" in flags


def guest_kernel() -> str:
    """Release of the newest installed kernel that has an ip_vs module and can be booted.

    Raises PreflightError, with the remedy, where there is none.
    """
    found = [
        modules.name
        for modules in Path("/lib/modules").glob("*")
        if any(modules.glob("kernel/net/netfilter/ipvs/ip_vs.ko*"))
        and os.access(f"/boot/vmlinuz-{modules.name}", os.R_OK)
    ]
    if not found:
        raise PreflightError(
            f"no bootable kernel with ip_vs below /boot and /lib/modules; {REMEDY}"
        )
    return max(
        found, key=lambda name: [int(n) for n in name.replace("-", ".").split(".") if n.isdigit()]
    )


def missing_programs() -> list[str]:
    """What has to be installed first; see REMEDY."""
    needed = ("vng", "qemu-system-x86_64", "busybox", "file")
    return [program for program in needed if not _which(program)]


def _which(program: str) -> str | None:
    return shutil.which(program, path=search_path())


def search_path() -> str:
    """PATH with this environment's own programs first: vng starts virtme-run by name."""
    system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return os.pathsep.join([f"{sys.prefix}/bin", os.environ.get("PATH", ""), system])


def prologue(control: Path) -> str:
    """What the guest's script begins with."""
    project = Path(__file__).resolve().parent.parent.parent
    cached = ["/usr"]
    for path in (sys.prefix, sys.base_prefix, str(project)):
        if not any(path == known or path.startswith(known + "/") for known in cached):
            cached.append(path)
    return PROLOGUE.format(cached=shlex.join(cached), control=shlex.quote(str(control)))


def command(kernel: str, script: Path, shared: Sequence[Path], memory: str) -> list[str]:
    """What runs ``script`` as root below ``kernel``; ``shared`` directories keep their files."""
    command = [str(_which("vng")), "-r", kernel, "--user", "root"]
    # No more than we may use: while one of a guest's CPUs has to wait for one of the host's, the
    # guest's others spin, and it is several times slower.
    cpus = str(len(os.sched_getaffinity(0)))
    command += ["--cpus", cpus, "--memory", memory]
    if not kvm_works():
        command.append("--disable-kvm")
    for option in ("mitigations=off", f"modprobe.blacklist={UNUSED_MODULES}"):
        command += ["--append", option]
    for path in shared:
        command += ["--rwdir", str(path)]
    fast = (
        "-fsdev local,id=fastroot,path=/,security_model=none,readonly=on,multidevs=remap"
        " -device virtio-9p-pci,fsdev=fastroot,mount_tag=fastroot"
    )
    return [*command, f"--qemu-opts={fast}", "--", f"bash {shlex.quote(str(script))}"]

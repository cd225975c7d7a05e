"""A User-mode Linux kernel in a virtual machine's place: Linux that is a process of this machine.

Where no hardware helps a virtual machine, programs in it run some ten times slower than here; in
User-mode Linux they run on this machine's processor as they are, and only system calls cost more
(https://docs.kernel.org/virt/uml/user_mode_linux_howto_v2.html). It has one CPU.
``.ci/uml-kernel`` builds one with IPVS next to the virtual environment, from Debian's source.
"""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# What the kernel says goes to a file; it is shown if there never was an exit code.
LAUNCHER = """\
exec 3>&1 4>&2 >"$1/console" 2>&1
control=$1
shift
"$@"
exec 1>&3 2>&4
[ -e "$control/code" ] && exit "$(cat "$control/code")"
tail -n 40 "$control/console" >&2
exit 1
"""
# The first process. Writes to this machine's files stay in memory, but those below {shared}.
# It ends by way of Python, which is there, as halt(8) may not be.
INIT = """\
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
cd /mnt/root
for dir in {shared}; do mkdir -p ".$dir"; mount --bind "$dir" ".$dir"; done
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devtmpfs dev
mkdir -p dev/pts dev/shm
ln -sfn /proc/self/fd dev/fd
ln -sfn /proc/self/fd/0 dev/stdin
ln -sfn /proc/self/fd/1 dev/stdout
ln -sfn /proc/self/fd/2 dev/stderr
mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
modules=lib/modules/$(uname -r)
mkdir -p "$modules"
cp -r {modules}/. "$modules"
pivot_root . mnt
set +e
exec chroot . /bin/bash -c {rest} </dev/null >/dev/ttyS0 2>/dev/ttyS1
"""
REST = """\
umount -l /mnt
stty raw -echo </dev/ttyS0
stty raw -echo </dev/ttyS1
# Pipes, as a terminal is something that programs look at.
exec 3> >(exec cat)
out=$!
exec 4> >(exec cat >&2)
error=$!
bash {script} >&3 2>&4 3>&- 4>&-
echo $? >{control}/code
exec 3>&- 4>&-
# What the script has left behind might hold the pipes open.
for each in /proc/[0-9]*; do
  case ${{each#/proc/}} in $$ | $out | $error) ;; *) kill -KILL "${{each#/proc/}}" ;; esac
done 2>/dev/null
wait $out $error
sync
exec {python} -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)'
"""
PROLOGUE = """\
mkdir -p /run/home
hostname user-mode-linux
ip link set lo up
ulimit -n 65536
touch {control}/started
"""


def kernel() -> Path | None:
    """The kernel that was built for this virtual environment, unless LAB_VM=qemu is set."""
    built = Path(sys.prefix, "uml", "linux")
    return built if os.environ.get("LAB_VM") != "qemu" and os.access(built, os.X_OK) else None


def command(linux: Path, script: Path, shared: Sequence[Path], memory: str) -> list[str]:
    """What runs ``script``, which is in the first of ``shared``, as root below ``linux``.

    Its standard output, error and exit code are the script's; ``shared`` directories keep what is
    written there.
    """
    control = shared[0]
    rest = REST.format(
        script=shlex.quote(str(script)),
        control=shlex.quote(str(control)),
        python=shlex.quote(sys.executable),
    )
    init = control / "init"
    init.write_text(
        INIT.format(
            shared=shlex.join(map(str, shared)),
            modules=shlex.quote(str(linux.with_name("modules"))),
            rest=shlex.quote(rest),
        )
    )
    init.chmod(0o755)
    launcher = ["sh", "-c", LAUNCHER, "sh", str(control)]
    # The machine's memory is a file in TMPDIR: one that needs no disk, if there is room.
    launcher += ["env", f"TMPDIR={_memory_directory(memory)}"]
    # Kernel and processes take turns; on two CPUs each turn would have to wake one of them up.
    launcher += ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
    launcher += [str(linux), f"mem={memory}", "rootfstype=hostfs", "rw", f"init={init}", "quiet"]
    return [*launcher, f"uml_dir={control}/", "con=null", "ssl0=null,fd:3", "ssl1=null,fd:4"]


def prologue(control: Path) -> str:
    """What the guest's script begins with."""
    return PROLOGUE.format(control=shlex.quote(str(control)))


def _memory_directory(memory: str) -> str:
    """Where a file of that size fits and may be mapped to be executed, in memory if possible."""
    shm, needed = Path("/dev/shm"), int(memory.removesuffix("G")) << 30
    executable = shm.is_dir() and not os.statvfs(shm).f_flag & os.ST_NOEXEC
    if executable and shutil.disk_usage(shm).free > needed:
        return str(shm)
    return tempfile.gettempdir()

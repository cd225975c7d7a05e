"""Start a program the way a container runtime does: namespaces, mounts, capabilities.

Run as a script (``python3 -I -S sandbox.py SPEC``, SPEC a JSON file) it becomes that program. Its
system calls are what the rest of the lab uses, too: Python 3.11 has no setns and no unshare.
Imports are few because one interpreter starts per container.
"""

import ctypes
import os
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38

# linux/capability.h, by number.
_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE"
    " NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO"
    " SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME"
    " SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG"
    " WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
CAPABILITIES = _NAMES.split()

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def setns(path: str, kind: int = CLONE_NEWNET) -> None:
    """Move the calling thread into the namespace behind ``path``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(descriptor, kind), f"setns {path}")
    finally:
        os.close(descriptor)


def unshare(flags: int) -> None:
    """Give the calling thread (or process, for mount namespaces) new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {source} on {target}")


def unmount(target: str) -> None:
    """Detach a mount; raises OSError where there is none."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def bind(source: str, target: str, read_only: bool = False) -> None:
    """Bind mount; read-only takes a second call because MS_BIND ignores other flags."""
    mount(source, target, flags=MS_BIND | MS_REC)
    if read_only:
        mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def limit_capabilities(allowed: set[str]) -> None:
    """Drop everything but ``allowed`` from the bounding set: the next exec has no more."""
    for number, name in enumerate(CAPABILITIES):
        # A kernel older than a capability answers EINVAL: there is nothing to drop.
        if name not in allowed and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            error = ctypes.get_errno()
            if error != 22:
                raise OSError(error, f"dropping CAP_{name}: {os.strerror(error)}")


def _place(descriptor: int, target: str, read_only: bool) -> None:
    """Bind what ``descriptor`` (O_PATH) refers to at ``target``, creating the mount point."""
    source = f"/proc/self/fd/{descriptor}"
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            with open(target, "x"):
                pass
    bind(source, target, read_only)


def _contain(spec: dict) -> None:  # type: ignore[type-arg]
    """Build the file system view: own /run, given volumes, everything else read-only."""
    unshare(CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    # Mounting over /run or /tmp may hide sources and the interpreter itself: hold on to both.
    volumes = [
        (os.open(item["source"], os.O_PATH), item["target"], item["read_only"])
        for item in spec["mounts"]
    ]
    keep = [(os.open(path, os.O_PATH), path) for path in spec["keep"]]
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for descriptor, target, read_only in sorted(volumes, key=lambda item: item[1].count("/")):
        _place(descriptor, os.path.realpath(target), read_only)
    for descriptor, path in keep:
        if not os.path.exists(path):
            _place(descriptor, path, True)
    for descriptor, *_ in [*volumes, *keep]:
        os.close(descriptor)
    if spec["read_only_sysctl"]:
        bind("/proc/sys", "/proc/sys", read_only=True)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | (MS_RDONLY if spec["read_only_sysctl"] else 0)
    mount("sysfs", "/sys", "sysfs", flags)
    mount("none", "/", flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def main() -> None:
    import json

    with open(sys.argv[1]) as file:
        spec = json.load(file)
    setns(spec["netns"])
    _contain(spec)
    os.chdir("/")
    if spec["capabilities"] is not None:
        limit_capabilities(set(spec["capabilities"]))
    if spec["no_new_privileges"]:
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    os.execvpe(spec["argv"][0], spec["argv"], spec["env"])


if __name__ == "__main__":
    main()

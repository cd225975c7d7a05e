"""Start a program the way a container runtime does: namespaces, mounts, capabilities.

Run as a script (``python3 -I -S sandbox.py SPECS``, SPECS a JSON file with a list of containers) it
runs all but the last of them one after the other, each to succeed, and becomes the last. With a
second argument, ``again``, it becomes that at once. Its system calls are what the rest of the lab
uses, too: Python 3.11 has no setns and no unshare.
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

_PR_SET_PDEATHSIG = 1
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


def _bind_as(source: str, target: str, read_only: bool = False) -> None:
    """Bind ``source`` at ``target``, which is created: its directory must be writable."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        with open(target, "x"):
            pass
    bind(source, target, read_only)


class Root:
    """A container's root: directories of ``image``, read-only, on a tmpfs of its own.

    ``image`` is the machine's own root or that of an image; /proc and /dev are always the
    machine's. So a mount point that is lacking is made in the tmpfs and never in them.
    """

    # Not taken from the machine: a container starts with these empty, or with its own.
    EMPTY = ("run", "tmp", "sys")

    def __init__(self, path: str, image: str = "/") -> None:
        self._path = path
        self._image = image.rstrip("/")
        mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        self._own_devices = {os.stat(path).st_dev}
        self._binds: list[str] = []
        self._volumes: list[str] = []
        for name in os.listdir(image):
            if name in self.EMPTY:
                os.mkdir(f"{path}/{name}")
            else:
                self._mirror(f"/{name}")

    def _mirror(self, path: str) -> None:
        target = self._path + path
        source = path if path in ("/proc", "/dev") else self._image + path
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif os.path.isdir(source) or os.path.isfile(source):
            _bind_as(source, target)
            self._binds.append(target)

    def place(self, descriptor: int, path: str, read_only: bool) -> None:
        """Bind what ``descriptor`` (O_PATH) refers to at ``path``, making the mount point."""
        target = self._path + path
        if not os.path.exists(target):
            self._make_writable(os.path.dirname(path))
            os.makedirs(os.path.dirname(target), exist_ok=True)
        _bind_as(f"/proc/self/fd/{descriptor}", target, read_only)
        if not read_only:
            self._volumes.append(path)

    def shows(self, descriptor: int, path: str) -> bool:
        """Whether ``path`` is already what ``descriptor`` refers to.

        A name alone proves nothing: a volume keeps the mount points of the container before.
        """
        try:
            found = os.stat(self._path + path)
        except OSError:
            return False
        wanted = os.stat(descriptor)
        return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)

    def _make_writable(self, path: str) -> None:
        """Replace the nearest directory that exists by a tmpfs with the same entries in it."""
        while not os.path.isdir(self._path + path):
            path = os.path.dirname(path)
        target = self._path + path
        if os.stat(target).st_dev in self._own_devices:
            return
        if any(path == volume or path.startswith(f"{volume}/") for volume in self._volumes):
            return  # the mount point is made in the volume, as a container runtime would
        entries = os.listdir(target)
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        self._own_devices.add(os.stat(target).st_dev)
        for name in entries:
            self._mirror(f"{path}/{name}")
        self._binds.append(target)

    def enter(self, read_only_sysctl: bool) -> None:
        """Seal it and make it the process's root."""
        if read_only_sysctl:
            bind("/proc/sys", f"{self._path}/proc/sys", read_only=True)
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | (MS_RDONLY if read_only_sysctl else 0)
        mount("sysfs", f"{self._path}/sys", "sysfs", flags)
        for target in [*self._binds, self._path]:
            if not target.endswith(("/proc", "/dev")):
                mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
        os.chroot(self._path)
        os.chdir("/")


def _contain(spec: dict) -> None:  # type: ignore[type-arg]
    """Build the file system view: own /run and /tmp, the volumes, all else read-only."""
    unshare(CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    # Mounting may hide sources and the interpreter itself: hold on to both.
    volumes = [
        (os.open(item["source"], os.O_PATH), os.path.realpath(item["target"]), item["read_only"])
        for item in spec["mounts"]
    ]
    keep = [(os.open(path, os.O_PATH), path) for path in spec["keep"]]
    root = Root(spec["root"], spec["image"])
    for descriptor, target, read_only in sorted(volumes, key=lambda item: item[1].count("/")):
        root.place(descriptor, target, read_only)
    for descriptor, path in keep:
        if not root.shows(descriptor, path):
            root.place(descriptor, path, True)
    for descriptor, *_ in [*volumes, *keep]:
        os.close(descriptor)
    root.enter(spec["read_only_sysctl"])


def _become(spec: dict) -> None:  # type: ignore[type-arg]
    setns(spec["netns"])
    _contain(spec)
    if spec["capabilities"] is not None:
        limit_capabilities(set(spec["capabilities"]))
    if spec["no_new_privileges"]:
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    os.execvpe(spec["argv"][0], spec["argv"], spec["env"])


def _run(spec: dict) -> None:  # type: ignore[type-arg]
    """Run an init container to its end; where it fails, so does the pod, with its exit code."""
    child = os.fork()
    if child == 0:
        # Whoever ends us must not leave it running.
        _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "pdeathsig")
        try:
            _become(spec)
        except OSError as error:
            print(f"{spec['name']}: {error}", file=sys.stderr, flush=True)
        os._exit(127)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        sys.exit(f"init container {spec['name']} failed with exit code {code}")


def main() -> None:
    import json

    with open(sys.argv[1]) as file:
        *first, last = json.load(file)
    if sys.argv[2:] != ["again"]:
        for spec in first:
            _run(spec)
    _become(last)


if __name__ == "__main__":
    main()

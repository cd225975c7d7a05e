"""The root of the agent's image, made without a container engine.

``Dockerfile`` is read and done by hand, instruction by instruction: a stage is a copy of a root
that debootstrap(8) made, and RUN is that program in a chroot. What is known here is all that the
Dockerfile may have; another instruction, a flag or a shell is an error.
"""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from kube_router_py.lab.sandbox import (
    CLONE_NEWNS,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    bind,
    mount,
    unshare,
)

REPOSITORY = Path(__file__).parents[1]
BASE = "debian:bookworm-"  # and a date, and -slim
SUITE = "bookworm"
DOCKERFILE = REPOSITORY / "Dockerfile"
TIMEOUT_S = 1200.0

# What the base image of Docker has and debootstrap alone does not make (debuerreotype's
# minimizing-config): no daemon is started, nothing is synced to disk, no documentation.
_CONFIGURATION = {
    "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
    "etc/dpkg/dpkg.cfg.d/docker-apt-speedup": "force-unsafe-io\n",
    "etc/dpkg/dpkg.cfg.d/docker": "path-exclude /usr/share/doc/*\n"
    "path-include /usr/share/doc/*/copyright\n"
    "path-exclude /usr/share/man/*\n"
    "path-exclude /usr/share/locale/*\n",
    "etc/apt/apt.conf.d/docker-no-languages": 'Acquire::Languages "none";\n',
}
# How this machine reaches the package indexes is none of the image's business: it is in the
# environment of a build, as an engine would have it.
_PASSED_ON: tuple[str, ...] = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
)
_PASSED_ON += ("PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT")


@dataclass
class Stage:
    """One FROM and what follows: the root and what a container of it would be started with."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    entry_point: tuple[str, ...] = ()


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile in which an instruction is one line."""
    lines = [line.strip() for line in text.splitlines()]
    found = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    return [(name, rest[0] if rest else "") for name, *rest in found]


def build(text: str, base: Path, directory: Path, context: Path = REPOSITORY) -> Stage:
    """The last stage of the Dockerfile ``text``, its root below ``directory``.

    ``base`` is the root that every FROM is taken for. Raises ValueError for what is not known, and
    CalledProcessError.
    """
    stages: dict[str, Stage] = {}
    ignored = (context / ".dockerignore").read_text()
    stage: Stage | None = None
    for name, arguments in instructions(text):
        words = shlex.split(arguments)
        if name == "FROM":
            if not (words[0].startswith(BASE) and words[0].endswith("-slim")):
                raise ValueError(f"FROM {words[0]}: only {BASE}...-slim is known")
            alias = words[2] if words[1:2] == ["AS"] else str(len(stages))
            stage = stages[alias] = Stage(directory / alias)
            subprocess.run(["cp", "-a", str(base), str(stage.root)], check=True)
        elif stage is None:
            raise ValueError(f"{name} before FROM")
        elif name == "COPY":
            _copy(words, stage, stages, context, ignored)
        elif name == "ENV":
            key, _, value = arguments.partition("=")
            stage.env[key] = value
        elif name == "RUN":
            run(stage.root, _exec_form(arguments), stage.env)
        elif name == "ENTRYPOINT":
            stage.entry_point = tuple(_exec_form(arguments))
        elif name != "EXPOSE":
            raise ValueError(f"{name} is not known")
    if stage is None:
        raise ValueError("no FROM")
    return stage


def _exec_form(arguments: str) -> list[str]:
    """Words of a JSON array; anything else would be run by a shell."""
    if not arguments.startswith("["):
        raise ValueError(f"{arguments!r} would be run by a shell")
    return [str(word) for word in json.loads(arguments)]


def _copy(
    words: list[str], stage: Stage, stages: Mapping[str, Stage], context: Path, ignored: str
) -> None:
    source_root, names = context, words
    if words[0].startswith("--from="):
        source_root, names, ignored = stages[words[0].partition("=")[2]].root, words[1:], ""
    *sources, target = names
    if any(word.startswith("--") for word in names):
        raise ValueError(f"COPY {' '.join(words)}: flags other than --from are not known")
    for source in sources:
        found = source_root / source.lstrip("/")
        into = stage.root / target.lstrip("/")
        if not found.is_dir() and target.endswith("/"):
            into /= found.name
        into.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(
                found,
                into,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=_left_out(source_root, ignored),
            )
        elif is_sent(source, ignored):
            shutil.copy2(found, into)
        else:
            raise ValueError(f"COPY {source}: .dockerignore keeps it away")


def is_sent(path: str, ignored: str) -> bool:
    """Whether .dockerignore (text ``ignored``) lets a path below the context be copied.

    The last line that matches the path, or a directory that it is in, decides.
    """
    sent = True
    parts = Path(path).parts
    for line in ignored.split():
        pattern = line.removeprefix("!")
        for end in range(1, len(parts) + 1):
            name = "/".join(parts[:end])
            if fnmatch(name, pattern) or (
                pattern.startswith("**/") and fnmatch(parts[end - 1], pattern[3:])
            ):
                sent = line.startswith("!")
    return sent


def _left_out(context: Path, ignored: str) -> Callable[[str, list[str]], set[str]]:
    def left_out(directory: str, names: list[str]) -> set[str]:
        below = Path(directory).relative_to(context)
        return {name for name in names if not is_sent(str(below / name), ignored)}

    return left_out


# --- roots --------------------------------------------------------------------------------------


def debootstrap(root: Path) -> None:
    """What ``debian:bookworm-slim`` is: required packages alone, from this machine's mirror."""
    mirror, security = mirrors()
    subprocess.run(
        ["debootstrap", "--variant=minbase", SUITE, str(root), mirror],
        check=True,
        timeout=TIMEOUT_S,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **_proxies()},
    )
    for name, text in _CONFIGURATION.items():
        (root / name).write_text(text)
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    (root / "etc/apt/sources.list").write_text(
        f"deb {mirror} {SUITE} main\n"
        f"deb {mirror} {SUITE}-updates main\n"
        f"deb {security} {SUITE}-security main\n"
    )
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)


def mirrors() -> tuple[str, str]:
    """Where this machine gets Debian and its security fixes from, or else where everybody does."""
    found = ["http://deb.debian.org/debian", "http://deb.debian.org/debian-security"]
    known = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in known.stdout.splitlines():
        origin, _, rest = line.partition(" ")
        release, _, address = rest.partition(" ")
        if origin == "Debian" and release in (SUITE, f"{SUITE}-security"):
            found[release != SUITE] = address.rstrip("/")
    return found[0], found[1]


def _proxies() -> dict[str, str]:
    return {name: os.environ[name] for name in os.environ if name.lower() in _PASSED_ON}


@contextmanager
def _network_settings() -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory for /mnt in the chroot, and variables that point into it: how this machine's apt
    and pip reach their servers."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        dumped = subprocess.run(
            ["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True
        )
        wanted = ("proxy", "cainfo", "timeout")
        lines = [x for x in dumped.stdout.splitlines() if any(w in x.lower() for w in wanted)]
        (directory / "apt.conf").write_text("\n".join(lines) + "\n")
        env = {"APT_CONFIG": "/mnt/apt.conf", **_proxies()}
        env |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        certificates = Path("/etc/ssl/certs/ca-certificates.crt")
        if certificates.exists():
            shutil.copy(certificates, directory / "ca.crt")
            env["PIP_CERT"] = "/mnt/ca.crt"
        for configuration in (Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf"):
            if configuration.exists():
                shutil.copy(configuration, directory / "pip.conf")
                env["PIP_CONFIG_FILE"] = "/mnt/pip.conf"
        yield directory, env


def run(root: Path, argv: list[str], env: Mapping[str, str]) -> str:
    """Run ``argv`` in a chroot as a build would, with this machine's network; its output."""
    with _network_settings() as (settings, variables):

        def enter() -> None:
            unshare(CLONE_NEWNS)
            mount("none", "/", flags=MS_REC | MS_PRIVATE)
            for name in ("proc", "dev"):
                bind(f"/{name}", f"{root}/{name}")
            mount("tmpfs", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV)
            bind(str(settings), f"{root}/mnt")
            bind("/etc/resolv.conf", f"{root}/etc/resolv.conf")
            os.chroot(root)
            os.chdir("/")

        done = subprocess.run(
            argv,
            preexec_fn=enter,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **env, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT_S,
        )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(argv)} exited with {done.returncode}:\n{done.stdout[-4000:]}"
        )
    return done.stdout


def locked(text: str) -> dict[str, tuple[str, str]]:
    """name -> (version, environment marker or "") of a lock file's text."""
    found = {}
    for line in text.splitlines():
        if line[:1].isalnum():
            pin, _, where = line.removesuffix("\\").partition(";")
            name, _, version = pin.strip().partition("==")
            found[name] = (version, where.strip())
    return found

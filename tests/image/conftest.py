"""The image's root, made once for all tests of this directory."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Packages are synced to disk one by one, which is most of the time where there are disks; the roots
# have a little more than a gigabyte.
ENOUGH_BYTES = 6 << 30


@pytest.fixture(scope="session")
def builder(beside: Callable[[str], ModuleType]) -> ModuleType:
    """Does what the Dockerfile says (module image_root)."""
    return beside("image_root")


@pytest.fixture(scope="session")
def stage(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The last stage of the Dockerfile: its root, environment and entry point."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("missing capability: root and debootstrap")
    directory = tmp_path_factory.mktemp("image")
    in_memory = available_bytes() > ENOUGH_BYTES
    if in_memory:
        subprocess.run(["mount", "-t", "tmpfs", "image", str(directory)], check=True)
    try:
        builder.debootstrap(directory / "base")
        yield builder.build(builder.DOCKERFILE.read_text(), directory / "base", directory)
    finally:
        # More than a gigabyte, which pytest would keep of its last three runs.
        if in_memory:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
        else:
            subprocess.run(["rm", "-rf", "--one-file-system", str(directory)], check=True)


def available_bytes() -> int:
    """Memory that the kernel takes to be there for new programs."""
    text = Path("/proc/meminfo").read_text()
    return int(text.split("MemAvailable:")[1].split()[0]) << 10


@pytest.fixture(scope="session")
def root(stage: Any) -> Path:
    return Path(stage.root)

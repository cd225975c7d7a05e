"""The Dockerfile: what it may have, what it pins, and how tests/image does what it says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import kube_router_py
from kube_router_py.lab.container import IMAGE_PATH
from kube_router_py.options import Options

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def builder(beside: Callable[[str], ModuleType]) -> ModuleType:
    return beside("image_root")


@pytest.fixture
def found(builder: ModuleType) -> list[tuple[str, str]]:
    text = builder.DOCKERFILE.read_text()
    assert f"kube-router-py:{kube_router_py.__version__}" in text
    return list(builder.instructions(text))


def of(found: list[tuple[str, str]], wanted: str) -> list[str]:
    return [arguments for name, arguments in found if name == wanted]


def test_all_that_it_runs_is_the_script_that_the_tests_run(found: list[tuple[str, str]]) -> None:
    known = {"FROM", "COPY", "ENV", "RUN", "EXPOSE", "ENTRYPOINT"}
    assert {name for name, _ in found} == known
    runs = [json.loads(arguments) for arguments in of(found, "RUN")]
    assert runs == [["/src/image/install", "build"], ["/src/image/install", "run"]]
    assert (REPOSITORY / "image/install").stat().st_mode & 0o111
    assert found[-1] == ("ENTRYPOINT", '["kube-router-py"]')
    assert of(found, "EXPOSE") == [str(Options().health_port)]


def test_its_base_is_that_of_one_day_in_both_stages(found: list[tuple[str, str]]) -> None:
    bases = {arguments.split()[0] for arguments in of(found, "FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"debian:bookworm-20\d{6}-slim", bases.pop())


def test_the_lab_looks_for_programs_where_the_image_does(found: list[tuple[str, str]]) -> None:
    assert f"PATH={IMAGE_PATH}" in of(found, "ENV")


def test_what_it_copies_exists_and_is_sent_to_the_engine(
    found: list[tuple[str, str]], builder: ModuleType
) -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text()
    for arguments in of(found, "COPY"):
        words = arguments.split()
        if not words[0].startswith("--from="):
            for source in words[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert builder.is_sent(source, ignored), source
    assert builder.is_sent("kube_router_py/lab/vm.py", ignored)
    for kept in ("tests/conftest.py", ".git/config", "kube_router_py/lab/__pycache__/vm.pyc"):
        assert not builder.is_sent(kept, ignored), kept


def test_python_packages_are_those_that_the_tests_ran_with(builder: ModuleType) -> None:
    tested = builder.locked((REPOSITORY / ".ci/requirements.lock").read_text())
    run = builder.locked((REPOSITORY / "image/run.lock").read_text())
    build = builder.locked((REPOSITORY / "image/build.lock").read_text())
    assert run.items() <= tested.items()
    assert build.items() <= tested.items()
    assert {"kubernetes", "pyroute2", "python-iptables", "msgspec"} <= run.keys()
    assert build.keys() == {"setuptools"}
    assert not run.keys() & {"pytest", "mypy", "virtme-ng"}


@pytest.mark.parametrize("name", ["run", "build"])
def test_every_package_has_a_hash(name: str) -> None:
    lines = (REPOSITORY / f"image/{name}.lock").read_text().splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line[:1].isalnum():
            assert following.strip().startswith("--hash=sha256:"), line


def test_packages_are_installed_by_hash_alone() -> None:
    script = (REPOSITORY / "image/install").read_text()
    commands = [line.strip() for line in script.splitlines() if line.strip().startswith("$pip")]
    assert len(commands) == 3
    for command in commands:
        assert "--require-hashes" in command or command == "$pip --no-deps --no-build-isolation .."


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("FROM alpine:3", "alpine:3"),
        ("FROM debian:bookworm-20250520-slim\nRUN apt-get install curl", "shell"),
        ("FROM debian:bookworm-20250520-slim\nADD http://example.com/x /x", "ADD"),
        ("FROM debian:bookworm-20250520-slim\nUSER nobody", "USER"),
        ("FROM debian:bookworm-20250520-slim\nCOPY --chmod=755 image /image", "--chmod"),
        ("FROM debian:bookworm-20250520-slim\nCOPY .ci/setup /setup", ".dockerignore"),
        ('RUN ["true"]', "before FROM"),
        ("# nothing", "no FROM"),
    ],
)
def test_what_the_tests_could_not_do_is_refused(
    text: str, named: str, builder: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(ValueError, match=re.escape(named)):
        builder.build(text, tmp_path / "base", tmp_path)


def test_copies_are_as_an_engine_makes_them(builder: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    stage = builder.build(
        "# a comment\n"
        "FROM debian:bookworm-20250520-slim AS first\n"
        "COPY image /src/image\n"
        "COPY pyproject.toml LICENSE /src/\n"
        "FROM debian:bookworm-20250520-slim\n"
        "COPY --from=first /src /copied\n"
        "ENV A=b=c\n"
        'ENTRYPOINT ["program", "-x"]\n',
        tmp_path / "base",
        tmp_path,
    )
    assert sorted(path.name for path in stage.root.iterdir()) == ["copied"]
    assert (stage.root / "copied/image/install").read_text() == (
        REPOSITORY / "image/install"
    ).read_text()
    assert (stage.root / "copied/LICENSE").is_file()
    assert (stage.env, stage.entry_point) == ({"A": "b=c"}, ("program", "-x"))

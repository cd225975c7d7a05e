"""Each subcommand explains itself, and whoever looks for it finds it."""

from pathlib import Path

import pytest

from kube_router_py.cli import COMMANDS, main
from kube_router_py.option_help import help_text

DOCS = Path(__file__).parents[3] / "docs"
PAGES = "".join(page.read_text() for page in DOCS.glob("*.md"))
WITH_OUTPUT = sorted(COMMANDS.keys() - {"lab", "version"})


def told(capsys: pytest.CaptureFixture[str], name: str) -> str:
    try:
        code = main([name, "--help"])
    except SystemExit as error:  # argparse, in the lab
        code = int(error.code or 0)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_shows_how_to_use_it(capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = told(capsys, name)
    assert text.lower().startswith(f"usage: kube-router-py {name}")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", WITH_OUTPUT)
def test_a_command_tells_of_its_output_and_exit_codes(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text = told(capsys, name)
    assert "--output" in text
    assert "text (default)" in text
    assert "Exit code" in text


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"version"}))
def test_a_command_is_in_the_help_of_the_program_and_in_the_documentation(name: str) -> None:
    assert f"  kube-router-py {name}" in help_text()
    assert f"kube-router-py {name}" in PAGES

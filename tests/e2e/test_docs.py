"""Commands of the documentation, run as they stand there: blocks of code that begin with
"```sh lab" are a script for a shell of the lab, one for each page."""

import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```sh lab\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPTS = {page.name: BLOCK.findall(page.read_text()) for page in sorted(DOCS.glob("*.md"))}
PAGES = [name for name, blocks in SCRIPTS.items() if blocks]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page(page: str) -> None:
    script = "set -euo pipefail\n" + "\n".join(SCRIPTS[page])
    done = subprocess.run(
        ["bash", "-xc", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
        env={**os.environ, "TERM": "dumb"},
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]


def test_there_are_such_pages() -> None:
    assert "getting-started.md" in PAGES

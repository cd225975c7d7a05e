"""The documentation hangs together: links lead somewhere, pages are listed, commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from kube_router_py.cli import COMMANDS
from kube_router_py.option_table import FLAGS

REPOSITORY = Path(__file__).parents[3]
DOCS = REPOSITORY / "docs"
PAGES = sorted([REPOSITORY / "README.md", *DOCS.rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading"


def test_every_page_is_listed() -> None:
    listed = set(LINK.findall((DOCS / "README.md").read_text()))
    missing = {page.name for page in DOCS.glob("*.md")} - listed - {"README.md"}
    assert not missing


def commands() -> list[tuple[str, str]]:
    """Lines of the documentation that call the program, with the page they are on."""
    found = []
    for page in PAGES:
        in_fence = False
        for line in page.read_text().splitlines():
            if line.startswith("```"):
                in_fence = not in_fence
            elif in_fence or line.startswith("    "):
                text = line.strip().removeprefix("$ ").removeprefix("sudo ")
                if text.startswith("kube-router-py ") and not re.search(r"\.\.\.|\[", text):
                    found.append((page.name, text.partition(" #")[0]))
    return found


def test_commands_of_the_documentation_exist() -> None:
    flags = {f"--{flag.name}" for flag in FLAGS} | {"--version", "--help"}
    seen = set()
    for page, text in commands():
        words = shlex.split(re.split(r"[|<>;&]", text.replace("\\|", " "))[0])
        # Of `lab exec NODE -- kube-router-py X` the second call counts, too.
        calls = " ".join(words).split("kube-router-py ")[1:]
        for call in calls:
            name = call.split()[0]
            if name.startswith("-"):
                assert name.partition("=")[0] in flags, f"{page}: {text}"
                continue
            assert name in COMMANDS, f"{page}: {text}"
            seen.add(name)
    assert {"explain", "status", "lab", "cleanup"} <= seen

"""docs/annotations.md names every annotation that the code knows, and no other."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
PACKAGE = REPOSITORY / "kube_router_py"
DOMAINS = r"(?:kube-router\.io|metallb\.io|metallb\.universe\.tf)"
NAME = re.compile(rf"(?<![\w./-]){DOMAINS}/[a-zA-Z][\w.-]*[a-zA-Z0-9](?![\w.]*\*)")
PREFIX = re.compile(rf'^(\w+) = "({DOMAINS}/[\w.-]*)"$', re.MULTILINE)
# Accepted as kube-router accepts it, and of no effect: no code has it.
WITHOUT_EFFECT = {"kube-router.io/service.hairpin.externalips"}


def names_in_code() -> set[str]:
    """Annotations in the package, also those written as f-strings after a prefix."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        prefixes = dict(PREFIX.findall(text))
        for name, prefix in prefixes.items():
            text = text.replace(f"{{{name}}}", prefix)
        # What ends with a dot or a slash is the beginning of names.
        whole = (each for each in prefixes.values() if each[-1] not in "./")
        found |= {*re.findall(rf'"({NAME.pattern})"', text), *whole}
    # Of a loop over names, which no constant spells out.
    found |= {f"kube-router.io/peer.{each}" for each in peer_lists()}
    return {each for each in found if "{" not in each}


def peer_lists() -> list[str]:
    source = (PACKAGE / "routing/peer_annotations.py").read_text()
    match = re.search(r'f"\{_LIST\}\{name\}" for name in \(([^)]*)\)', source)
    assert match, "the lists of routers are written otherwise now"
    return re.findall(r'"(\w+)"', match[1])


def test_the_page_has_every_annotation_and_no_other() -> None:
    page = (REPOSITORY / "docs/annotations.md").read_text()
    code = names_in_code()
    assert {"kube-router.io/audit", "kube-router.io/node.asn", "metallb.io/address-pool"} <= code
    listed = set(re.findall(rf"`({NAME.pattern})`", page))
    assert listed - WITHOUT_EFFECT == code


def test_what_the_other_pages_say_is_listed() -> None:
    listed = set(NAME.findall((REPOSITORY / "docs/annotations.md").read_text()))
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        said = {
            each.rstrip("-.") for each in re.findall(rf"`({NAME.pattern})[=:`]", page.read_text())
        }
        assert not said - listed, page.name

"""The verdicts of docs/policy-recipes.md are those of ``explain``."""

import json
import re
from pathlib import Path

import pytest

from kube_router_py import cli

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "policy-recipes.md").read_text()
RECIPES = re.findall(r"^```yaml\n(.*?)^```\n\n```verdicts\n(.*?)^```$", PAGE, re.M | re.S)


def test_every_recipe_has_verdicts() -> None:
    assert len(RECIPES) == PAGE.count("```yaml") == PAGE.count("```verdicts") >= 8


@pytest.mark.parametrize(
    ("policy", "verdicts"), RECIPES, ids=[re.findall(r"name: ([\w-]+)", p)[0] for p, _ in RECIPES]
)
def test_verdicts(
    policy: str, verdicts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.yaml").write_text(policy)
    expected = [line.split() for line in verdicts.splitlines()]
    flows = []
    for _, source, destination, what in expected:
        port, _, protocol = what.partition("/")
        flows.append({"from": source, "to": destination, "port": int(port), "protocol": protocol})
    (tmp_path / "flows.json").write_text(json.dumps(flows))
    files = ["-f", str(DOCS / "examples/recipes.yaml"), "-f", str(tmp_path / "policy.yaml")]
    flags = ["--flows", str(tmp_path / "flows.json"), "-o", "json"]
    assert cli.main(["explain", *files, *flags]) == 0
    answers = json.loads(capsys.readouterr().out)
    for (word, *flow), answer in zip(expected, answers, strict=True):
        assert answer["error"] is None, flow
        assert answer["allowed"] == (word == "allowed"), (flow, answer["reason"])

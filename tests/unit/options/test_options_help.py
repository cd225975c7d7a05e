"""The help text teaches every flag, and docs/flags.md is what the declarations say."""

from pathlib import Path

from kube_router_py.option_flag import GROUPS
from kube_router_py.option_help import help_text, markdown
from kube_router_py.options import FLAGS

REPOSITORY = Path(__file__).parents[3]


def test_help_names_every_flag_with_default_and_variable():
    text = help_text()
    for flag in FLAGS:
        assert f"--{flag.name}" in text
        assert f"[{flag.environment}]" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_every_flag_has_a_group_and_says_what_it_does():
    for flag in FLAGS:
        assert flag.group in GROUPS
        assert flag.help.rstrip(")").endswith(".")


def test_names_are_unique():
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)


def test_the_reference_is_current():
    # If this fails: python -m kube_router_py.option_help > docs/flags.md
    assert (REPOSITORY / "docs/flags.md").read_text() == markdown()

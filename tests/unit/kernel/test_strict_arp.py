"""The kernel's own answers for what kube-proxy has on a link."""

from pathlib import Path

import pytest

from kube_router_py.kernel.strict_arp import strict_arp_mistake

DEV = "Inter-|   Receive\n face |bytes\n    lo:  1 2\n{}  eth0:  1 2\n"


@pytest.mark.parametrize(
    ("link", "setting", "is_wrong"),
    [("kube-ipvs0", "0", True), ("kube-ipvs0", "1", False), ("kube-ipvs01", "0", False)],
)
def test_every_node_answers_only_with_both(
    tmp_path: Path, link: str, setting: str, is_wrong: bool
) -> None:
    for name, text in (
        ("thread-self/net/dev", DEV.format(f"{link}:  0 0\n")),
        ("sys/net/ipv4/conf/all/arp_ignore", f"{setting}\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert bool(strict_arp_mistake(tmp_path)) == is_wrong


def test_what_cannot_be_read_is_not_told(tmp_path: Path) -> None:
    assert strict_arp_mistake(tmp_path) == ""

"""Own chains in the variant of iptables that is not in use, told from kube-router's by markers."""

from collections.abc import Iterable, Mapping

import pytest

from kube_router_py.errors import KernelError
from kube_router_py.kernel import other_variant
from kube_router_py.kernel.iptables_variant import NO_NFT
from kube_router_py.kernel.other_variant import remove_from_other_variant

OWN, MARKER = "KUBE-POD-FW-A", "KUBE-ROUTER-ACCEPT-FWD"


class Iptables:
    """What stands in iptables-nft, by family and table; ``error`` is raised where it is read."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, str], Mapping[str, tuple[str, ...]]] = {}
        self.error: KernelError | None = None
        self.removed: list[tuple[str, str, tuple[str, ...]]] = []

    def __call__(self, variant: str) -> "Iptables":
        assert variant == "iptables-nft"
        self.variant = variant
        return self

    def chains(self, family: str, table: str) -> Mapping[str, tuple[str, ...]]:
        if self.error is not None:
            raise self.error
        return self.tables.get((family, table), {})

    def remove(self, family: str, table: str, chains: Iterable[str]) -> None:
        self.removed.append((family, table, tuple(chains)))


@pytest.fixture
def iptables(monkeypatch: pytest.MonkeyPatch) -> Iptables:
    """That of a node which uses the legacy variant."""
    found = Iptables()
    monkeypatch.setattr(other_variant, "IptablesProgram", found)
    monkeypatch.setattr(other_variant.shutil, "which", lambda name: name)
    return found


def remove(*markers: str) -> tuple[str, ...]:
    families = ("inet", "inet6")
    return remove_from_other_variant(
        "iptables-legacy", families, lambda name: name.startswith("KUBE-"), markers
    )


def test_a_table_without_a_marker_is_left(iptables: Iptables) -> None:
    iptables.tables = {
        ("inet", "filter"): {OWN: (), "FOREIGN": ()},
        ("inet6", "filter"): {OWN: (), MARKER: (), "FOREIGN": ()},
    }
    assert len(remove(MARKER, "KUBE-ROUTER-GUARD")) == 2
    assert iptables.removed == [("inet6", "filter", (OWN, MARKER))]
    assert len(remove()) == 3, "without markers names are enough"


def test_a_kernel_without_nf_tables_has_no_chains_there(iptables: Iptables) -> None:
    iptables.error = KernelError(f"iptables-nft-save -t filter: {NO_NFT}")
    assert remove() == ()
    iptables.error = KernelError("iptables-nft-save took more than 30 s")
    with pytest.raises(KernelError, match="30 s"):
        remove()

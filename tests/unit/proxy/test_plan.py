"""plan: the order of writes, step by step on a table in memory."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.delta import Delta, diff
from kube_router_py.kernel.fake import FakeIpvs
from kube_router_py.proxy.model import (
    IpvsTable,
    RealServer,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerState,
)
from kube_router_py.proxy.plan import plan

NO_VIPS: Delta[Any, bytes] = Delta({}, {}, ())


def takes_connections(state: VirtualServerState | None) -> bool:
    return state is not None and any(real.weight for real in state.real_servers.values())


def tables(make: Any) -> st.SearchStrategy[IpvsTable]:
    servers = st.sampled_from([make.key(f"10.96.0.{n}") for n in range(1, 4)])
    reals = st.sampled_from([make.real(f"10.244.1.{n}") for n in range(1, 5)])
    weights = st.integers(0, 2).map(lambda weight: RealServer(weight=weight))
    configs = st.builds(
        VirtualServer, st.sampled_from(["rr", "lc"]), st.just(0), st.sampled_from([0, 60])
    )
    states = st.builds(VirtualServerState, configs, st.dictionaries(reals, weights, max_size=4))
    return st.dictionaries(servers, states, max_size=3)


@given(data=st.data())
def test_a_plan_turns_one_table_into_the_other_and_no_step_is_wrong(
    make: Any, data: st.DataObject
) -> None:
    before, after = data.draw(tables(make)), data.draw(tables(make))
    planned = plan(diff(after, before), before, NO_VIPS)
    kernel = FakeIpvs(before)
    served = [
        key
        for key in before
        if takes_connections(before[key]) and takes_connections(after.get(key))
    ]
    for operation in (*planned.grow, *planned.shrink):
        assert kernel.apply([operation]) == []
        table = kernel.read()
        assert all(takes_connections(table[key]) for key in served), operation
    assert kernel.read() == after


@given(data=st.data())
def test_between_the_halves_new_and_old_virtual_servers_stand(
    make: Any, data: st.DataObject
) -> None:
    """The moment at which addresses change: every address has its virtual servers."""
    before, after = data.draw(tables(make)), data.draw(tables(make))
    planned = plan(diff(after, before), before, NO_VIPS)
    kernel = FakeIpvs(before)
    kernel.apply(planned.grow)
    assert kernel.read().keys() == before.keys() | after.keys()


def test_equal_tables_need_nothing(make: Any) -> None:
    table: IpvsTable = {make.key("10.96.0.1"): VirtualServerState(VirtualServer(), {})}
    assert not plan(diff(table, dict(table)), table, NO_VIPS)


def test_adds_come_before_removals_over_the_whole_batch(make: Any) -> None:
    def one(address: str) -> VirtualServerState:
        return VirtualServerState(VirtualServer(), {make.real(address): RealServer()})

    keys: list[VirtualServerKey] = [make.key(f"10.96.0.{n}") for n in range(1, 4)]
    before = {keys[0]: one("10.244.1.1"), keys[1]: one("10.244.1.1")}
    after = {keys[1]: one("10.244.1.2"), keys[2]: one("10.244.1.3")}
    planned = plan(diff(after, before), before, NO_VIPS)
    assert [operation.verb for operation in planned.grow] == [
        Verb.ADD_VIRTUAL_SERVER,
        Verb.ADD_REAL_SERVER,
        Verb.ADD_REAL_SERVER,
    ]
    assert [operation.verb for operation in planned.shrink] == [
        Verb.DELETE_REAL_SERVER,
        Verb.DELETE_VIRTUAL_SERVER,
    ]

"""Desired: conflicts between Services, reference counts of addresses, what an update touches."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.proxy.compile import CompiledService, compile_service
from kube_router_py.proxy.desired import Desired
from kube_router_py.proxy.model import Vip
from kube_router_py.proxy.settings import ProxyOptions

OPTIONS = ProxyOptions(strict_external_ips=False)


def compiled(make: Any, service: Any, *slices: Any) -> CompiledService:
    return compile_service(service, slices, make.place(), OPTIONS)


def shared(make: Any, name: str, created: str | None) -> CompiledService:
    """A Service of its own ClusterIP and one external IP that all of these share."""
    number = {"a": 1, "b": 2, "c": 3}[name]
    service = make.service(
        name, (f"10.96.0.{number}",), external_ips=("203.0.113.1",), created=created
    )
    return compiled(make, service, make.slice(f"10.244.1.{number}", service=name))


def test_the_older_service_holds_a_contested_virtual_server(make: Any) -> None:
    desired = Desired()
    key = make.key("203.0.113.1")
    desired.update("default/a", shared(make, "a", "2024-02-01T00:00:00Z"))
    changes = desired.update("default/b", shared(make, "b", "2024-01-01T00:00:00Z"))
    assert key in changes.servers
    assert desired.claimants(key) == ("default/b", "default/a")
    assert make.weights(desired.state(key)) == {"10.244.1.2": 1}
    (problem,) = desired.problems()
    assert problem.object == "Service default/a"
    assert "default/b" in problem.reason


def test_equal_age_is_decided_by_name_and_no_age_is_youngest(make: Any) -> None:
    desired = Desired()
    desired.update("default/b", shared(make, "b", "2024-01-01T00:00:00Z"))
    desired.update("default/a", shared(make, "a", "2024-01-01T00:00:00Z"))
    desired.update("default/c", shared(make, "c", None))
    assert desired.claimants(make.key("203.0.113.1")) == ("default/a", "default/b", "default/c")


def test_the_next_one_takes_over_and_the_address_stays_meanwhile(make: Any) -> None:
    desired = Desired()
    key = make.key("203.0.113.1")
    vip = Vip(key.family, key.address)
    desired.update("default/a", shared(make, "a", "2024-01-01T00:00:00Z"))
    desired.update("default/b", shared(make, "b", "2024-02-01T00:00:00Z"))
    changes = desired.update("default/a", None)
    assert key in changes.servers
    assert vip in changes.vips
    assert desired.vip_claimants(vip) == {"default/b"}
    assert make.weights(desired.state(key)) == {"10.244.1.2": 1}
    assert desired.problems() == ()
    desired.update("default/b", None)
    assert list(desired.servers()) == []
    assert list(desired.vips()) == []


def test_a_recreated_service_loses_its_seniority(make: Any) -> None:
    desired = Desired()
    key = make.key("203.0.113.1")
    desired.update("default/a", shared(make, "a", "2024-01-01T00:00:00Z"))
    desired.update("default/b", shared(make, "b", "2024-02-01T00:00:00Z"))
    changes = desired.update("default/a", shared(make, "a", "2024-03-01T00:00:00Z"))
    assert key in changes.servers
    assert desired.owner(key) == "default/b"


def test_an_update_touches_only_what_changed(make: Any) -> None:
    desired = Desired()
    service = make.service(external_ips=("203.0.113.1",), node_port=30080)
    desired.update("default/web", compiled(make, service, make.slice("10.244.1.2")))
    same = desired.update("default/web", compiled(make, service, make.slice("10.244.1.2")))
    assert (same.servers, same.vips) == (frozenset(), frozenset())
    fewer = compiled(make, make.service(node_port=30080), make.slice("10.244.1.2"))
    changes = desired.update("default/web", fewer)
    key = make.key("203.0.113.1")
    assert changes.servers == {key}
    assert changes.vips == {Vip(key.family, key.address)}


def test_a_pause_is_a_change(make: Any) -> None:
    desired = Desired()
    gone = compiled(make, make.service(), make.slice())
    paused = compiled(make, make.service(), make.slice(make.endpoint("10.244.1.2", make.NOT_READY)))
    desired.update("default/web", paused)
    assert desired.paused(make.key("10.96.0.10")) == {make.real("10.244.1.2")}
    assert desired.update("default/web", gone).servers == {make.key("10.96.0.10")}


def test_problems_come_and_go_with_their_service(make: Any) -> None:
    desired = Desired()
    desired.update("default/web", compiled(make, make.service(port=0)))
    assert [problem.field for problem in desired.problems()] == ["spec.ports[0].port"]
    assert "default/web" in desired.services()
    desired.update("default/web", None)
    assert desired.problems() == ()
    assert list(desired.services()) == []


@given(data=st.data())
def test_any_history_ends_as_a_fresh_index(make: Any, data: st.DataObject) -> None:
    ages = st.sampled_from([None, "2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z"])
    desired = Desired()
    last: dict[str, CompiledService | None] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        name = data.draw(st.sampled_from("abc"))
        value = data.draw(st.none() | ages.map(lambda age, name=name: shared(make, name, age)))
        before = {key: desired.state(key) for key in desired.servers()}
        changes = desired.update(f"default/{name}", value)
        after = {key: desired.state(key) for key in desired.servers()}
        changed = {key for key in {**before, **after} if before.get(key) != after.get(key)}
        assert changed <= changes.servers
        last[f"default/{name}"] = value
    fresh = Desired()
    for name in sorted(last):
        fresh.update(name, last[name])
    assert {k: desired.claimants(k) for k in desired.servers()} == {
        k: fresh.claimants(k) for k in fresh.servers()
    }
    assert {v: desired.vip_claimants(v) for v in desired.vips()} == {
        v: fresh.vip_claimants(v) for v in fresh.vips()
    }
    assert desired.problems() == fresh.problems()

"""Desired: conflicts between Services, reference counts of addresses, what an update touches."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from kube_router_py.proxy.compile import CompiledService, compile_service
from kube_router_py.proxy.desired import Desired
from kube_router_py.proxy.model import Guard, HealthCheck, Vip
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
        age, port = data.draw(ages), data.draw(st.sampled_from([32000, 32001]))
        value = data.draw(
            st.sampled_from([None, shared(make, name, age), checked(make, name, age, port)])
        )
        before = {key: desired.state(key) for key in desired.servers()}
        answers = dict(desired.health_checks())
        changes = desired.update(f"default/{name}", value)
        after = {key: desired.state(key) for key in desired.servers()}
        changed = {key for key in {**before, **after} if before.get(key) != after.get(key)}
        assert changed <= changes.servers
        answer = dict(desired.health_checks())
        assert {k for k in {**answers, **answer} if answers.get(k) != answer.get(k)} <= (
            changes.services
        )
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
    assert dict(desired.health_checks()) == dict(fresh.health_checks())
    assert desired.problems() == fresh.problems()


def checked(make: Any, name: str, created: str | None, port: int = 32000, *endpoints: str) -> Any:
    service = make.service(
        name,
        (f"10.96.1.{ord(name)}",),
        created=created,
        type="LoadBalancer",
        external_traffic_policy="Local",
        health_check_node_port=port,
    )
    return compiled(make, service, make.slice(*endpoints, service=name))


def test_one_service_answers_on_a_health_check_port(make: Any) -> None:
    desired = Desired()
    changes = desired.update("default/b", checked(make, "b", "2024-02-01T00:00:00Z"))
    assert changes.services == {"default/b"}
    changes = desired.update("default/a", checked(make, "a", "2024-01-01T00:00:00Z"))
    assert changes.services == {"default/a", "default/b"}
    assert dict(desired.health_checks()) == {"default/a": HealthCheck(32000, 0)}
    assert desired.health_check("default/b") is None
    (problem,) = desired.problems()
    assert (problem.object, problem.field) == ("Service default/b", "spec.healthCheckNodePort")
    assert "default/a" in problem.reason
    # The holder moves to another port, and the next one steps in.
    changes = desired.update("default/a", checked(make, "a", "2024-01-01T00:00:00Z", 32001))
    assert changes.services == {"default/a", "default/b"}
    assert desired.problems() == ()
    assert dict(desired.health_checks()) == {
        "default/a": HealthCheck(32001, 0),
        "default/b": HealthCheck(32000, 0),
    }
    assert desired.update("default/b", None).services == {"default/b"}
    assert desired.health_check("default/b") is None
    assert dict(desired.health_checks()) == {"default/a": HealthCheck(32001, 0)}
    assert desired.problems() == ()


def test_seniority_decides_health_checks_after_a_recreation_too(make: Any) -> None:
    desired = Desired()
    desired.update("default/a", checked(make, "a", "2024-01-01T00:00:00Z"))
    desired.update("default/b", checked(make, "b", "2024-02-01T00:00:00Z"))
    changes = desired.update("default/a", checked(make, "a", "2024-03-01T00:00:00Z"))
    assert changes.services == {"default/a", "default/b"}
    assert dict(desired.health_checks()) == {"default/b": HealthCheck(32000, 0)}


def test_a_change_of_the_answer_names_the_service(make: Any) -> None:
    desired = Desired()
    age = "2024-01-01T00:00:00Z"
    desired.update("default/a", checked(make, "a", age, 32000, "10.244.1.2"))
    same = desired.update("default/a", checked(make, "a", age, 32000, "10.244.1.2"))
    assert same.services == frozenset()
    more = checked(make, "a", age, 32000, "10.244.1.2", "10.244.1.3")
    assert desired.update("default/a", more).services == {"default/a"}
    assert desired.health_check("default/a") == HealthCheck(32000, 2)


def test_a_health_check_counts_without_a_virtual_server(make: Any) -> None:
    desired = Desired()
    bare = structs.replace(
        checked(make, "a", "2024-01-01T00:00:00Z"), virtual_servers={}, origins={}, problems=()
    )
    desired.update("default/a", bare)
    assert desired.health_check("default/a") == HealthCheck(32000, 0)
    desired.update("default/a", None)
    assert list(desired.health_checks()) == []


def test_what_asks_for_nothing_is_forgotten(make: Any) -> None:
    desired = Desired()
    desired.update("default/web", compiled(make, make.service(), make.slice("10.244.1.2")))
    assert list(desired.services()) == ["default/web"]
    desired.update("default/web", None)
    assert list(desired.services()) == []
    assert desired.compiled("default/web") is None


def test_hairpins_that_change_name_the_service(make: Any) -> None:
    desired = Desired()
    service = make.service(annotations={"kube-router.io/service.hairpin": ""})
    one, two = (
        compiled(make, service, make.slice(*addresses))
        for addresses in (("10.244.1.2",), ("10.244.1.2", "10.244.1.3"))
    )
    assert desired.update("default/web", one).services == {"default/web"}
    assert desired.update("default/web", one).services == frozenset()
    assert desired.update("default/web", two).services == {"default/web"}
    assert desired.update("default/web", None).services == {"default/web"}


def test_a_guard_is_a_change_even_if_no_endpoint_is(make: Any) -> None:
    desired = Desired()
    key = make.key("203.0.113.3")
    open_to_all, narrow = (
        compiled(make, make.service(lb_ips=("203.0.113.3",), load_balancer_source_ranges=ranges))
        for ranges in ((), ("10.0.0.0/8",))
    )
    desired.update("default/web", open_to_all)
    assert desired.guard(key) is None
    assert desired.update("default/web", narrow).servers == {key}
    assert desired.guard(key) == Guard(source_ranges=("10.0.0.0/8",))
    assert desired.update("default/web", open_to_all).servers == {key}

"""The speaker: from the cache's objects to what the fake FRR runs."""

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from kube_router_py.cluster.cache import Cache
from kube_router_py.cluster.objects import EndpointSlice, Node, Service
from kube_router_py.errors import ApiError, KubeRouterError
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.ports_frr import CommandResult
from kube_router_py.observe.log_fields import values
from kube_router_py.routing.model import GracefulRestart
from kube_router_py.routing.passwords import SecretRef
from kube_router_py.routing.secrets import PasswordSources
from kube_router_py.routing.settings import RoutingSettings
from kube_router_py.routing.speaker import Speaker, Spoken

PEER = ip_address("203.0.113.1")
DRAIN = "kube-router.io/drain"


class World:
    def __init__(self, **flags: Any) -> None:
        self.cache = Cache((Node, Service, EndpointSlice))
        self.daemons = FakeDaemons()
        self.frr = FakeFrr(self.daemons)
        self.settings = RoutingSettings(
            **{
                "graceful_restart": GracefulRestart(),
                "has_proxy": False,
                "advertise_cluster_ip": True,
                "peer_addresses": (PEER,),
                "peer_asns": (65000,),
                **flags,
            }
        )
        self.secrets: dict[SecretRef, bytes] = {}
        self.passwords = PasswordSources(self.settings, "node1", self.secrets.get)
        self.speaker = Speaker(self.cache, self.settings, "node1", self.frr, self.passwords)
        self.now_s = 100.0

    def put(self, thing: Any) -> None:
        self.cache.put(type(thing), thing)
        self._follow(type(thing), thing.metadata.key)

    def delete(self, kind: type, key: str) -> None:
        self.cache.delete(kind, key)
        self._follow(kind, key)

    def _follow(self, kind: type, key: str) -> None:
        if kind is Node:
            self.speaker.follow_node(key)
        elif kind is Service:
            self.speaker.follow_service(key)

    def settle(self, *, full: bool = False) -> Spoken:
        return self.speaker.settle(full=full, local=(), now_s=self.now_s)

    def bgpd(self) -> str:
        return self.daemons.configs["bgpd"].text()


@pytest.fixture
def world(make: Any) -> World:
    world = World()
    world.put(make.node("node1"))
    world.put(make.node("node2", ["192.168.1.2"], ["10.244.2.0/24"]))
    return world


def test_nothing_is_done_before_this_node_is_known(make: Any) -> None:
    world = World()
    world.put(make.node("node2", ["192.168.1.2"], ["10.244.2.0/24"]))
    spoken = world.settle(full=True)
    assert not spoken.is_settled
    assert [each.object for each in spoken.problems] == ["Node node1"]
    assert world.daemons.boots == []
    world.put(make.node("node1"))
    assert world.settle(full=True).is_settled


def test_nodes_routers_and_services_are_spoken_of(world: World, make: Any) -> None:
    world.put(make.service(ips=["10.96.0.10"]))
    assert world.settle(full=True) == Spoken(is_settled=True, problems=())
    assert "neighbor 192.168.1.2 remote-as internal" in world.bgpd()
    assert f"neighbor {PEER} remote-as 65000" in world.bgpd()
    assert "network 10.244.1.0/24 route-map" in world.bgpd()
    assert "network 10.96.0.10/32 route-map" in world.bgpd()


def test_what_frr_is_told_to_announce_is_counted_by_what_it_is(world: World, make: Any) -> None:
    def told() -> tuple[int, int, int]:
        found = world.speaker.advertisements
        return found["pod-route"], found["advertise-vip"], found["withdraw-vip"]

    world.put(make.service(ips=["10.96.0.10"]))
    world.settle(full=True)
    assert told() == (1, 1, 0), "daemons that are started take it from their files"
    world.settle(full=True)
    assert told() == (1, 1, 0)
    world.put(make.service(ips=["10.96.0.11"]))
    world.settle()
    assert told() == (1, 2, 1)
    world.delete(Service, "default/web")
    world.settle()
    assert told() == (1, 2, 2)


def test_changes_take_effect_without_a_restart(world: World, make: Any) -> None:
    world.settle(full=True)
    world.put(make.service(ips=["10.96.0.10"]))
    world.put(make.node("node3", ["192.168.1.3"], ["10.244.3.0/24"]))
    world.delete(Node, "node2")
    assert world.settle().is_settled
    assert "network 10.96.0.10/32" in world.bgpd()
    assert "neighbor 192.168.1.3 remote-as internal" in world.bgpd()
    assert "192.168.1.2" not in world.bgpd()
    world.delete(Service, "default/web")
    assert world.settle().is_settled
    assert "10.96.0.10" not in world.bgpd()
    assert len(world.daemons.boots) == 1
    assert world.speaker.services_known() == set()


def test_what_frr_announces_is_told_with_the_services(
    world: World, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kube_router_py.routing.telling")

    def told() -> list[list[tuple[str, str]]]:
        lines = [record for record in caplog.records if record.name.endswith(".telling")]
        caplog.clear()
        return [values(each.msg, each.args) for each in lines]

    world.settle(full=True)
    assert told() == []  # the pods of the node, no Service
    world.put(make.service(ips=["10.96.0.10"]))
    world.put(make.service("dns", ips=["10.96.0.53"]))
    world.settle()
    first = [("address", "10.96.0.10"), ("services", "default/web")]
    assert told() == [first, [("address", "10.96.0.53"), ("services", "default/dns")]]
    world.settle(full=True)
    assert told() == []
    world.delete(Service, "default/web")
    world.settle()
    assert told() == [first]
    for number in range(30):
        world.put(make.service(f"s{number}", ips=[f"10.96.1.{number}"]))
    world.settle()
    lines = told()
    assert (len(lines), lines[-1]) == (21, [("count", "10")])


def test_this_node_missing_for_a_moment_changes_nothing(world: World, make: Any) -> None:
    world.put(make.node("node1", annotations={DRAIN: "true"}))
    world.settle(full=True)
    before = world.bgpd()
    assert "bgp graceful-shutdown" in before
    world.delete(Node, "node1")
    assert world.settle().is_settled
    assert world.bgpd() == before


def test_without_an_identity_frr_is_left_as_it_runs(make: Any) -> None:
    world = World(full_mesh=False)
    asn = {"kube-router.io/node.asn": "64513"}
    world.put(make.node("node1", annotations=asn))
    assert world.settle(full=True).is_settled
    before = world.bgpd()
    world.put(make.node("node1"))
    spoken = world.settle()
    assert not spoken.is_settled
    assert any("node.asn" in str(each) for each in spoken.problems)
    assert world.bgpd() == before
    world.put(make.node("node1", annotations=asn))
    assert world.settle().is_settled


def test_a_drain_marks_first_then_withdraws_services_only(world: World, make: Any) -> None:
    world.put(make.service(ips=["10.96.0.10"]))
    world.settle(full=True)
    world.put(make.node("node1", annotations={DRAIN: "true"}))
    spoken = world.settle()
    assert spoken.wake_after_s == world.settings.drain_delay_s
    assert DRAIN in world.speaker.drain_cause
    assert "bgp graceful-shutdown" in world.bgpd()
    assert "network 10.96.0.10/32" in world.bgpd()
    world.now_s += world.settings.drain_delay_s
    assert world.settle().wake_after_s is None
    assert "network 10.96.0.10/32" not in world.bgpd()
    assert "network 10.244.1.0/24" in world.bgpd()
    assert f"neighbor {PEER} remote-as" in world.bgpd()
    world.put(make.node("node1"))
    world.settle()
    assert "bgp graceful-shutdown" not in world.bgpd()
    assert "network 10.96.0.10/32" in world.bgpd()


@pytest.mark.parametrize("withdraw", [False, True])
def test_an_agent_that_exits_withdraws_only_if_told_to(make: Any, withdraw: bool) -> None:
    world = World(withdraw_on_exit=withdraw)
    world.put(make.node("node1"))
    world.settle(full=True)
    world.speaker.is_exiting = True
    world.settle()
    assert ("bgp graceful-shutdown" in world.bgpd()) is withdraw


def test_with_a_proxy_an_address_is_announced_once_it_is_programmed(make: Any) -> None:
    world = World(has_proxy=True)
    world.put(make.node("node1"))
    world.put(make.service(ips=["10.96.0.10"]))
    world.settle(full=True)
    assert (world.speaker.announced, "network 10.96.0.10/32" in world.bgpd()) == (0, False)
    world.speaker.follow_programmed({ip_address("10.96.0.10")})
    world.settle()
    assert (world.speaker.announced, "network 10.96.0.10/32" in world.bgpd()) == (1, True)
    world.speaker.follow_programmed(set())
    world.settle()
    assert "network 10.96.0.10/32" not in world.bgpd()


def test_the_passwords_file_is_read_anew_and_a_broken_one_costs_nothing(
    make: Any, tmp_path: Path
) -> None:
    file = tmp_path / "passwords"
    file.write_text("czNjcmV0\n")
    world = World(peer_passwords_file=str(file))
    world.put(make.node("node1"))
    assert world.settle(full=True).is_settled
    assert f"neighbor {PEER} password s3cret" in world.bgpd()
    for broken in ("", "czNjcmV0,czNjcmV0\n"):
        file.write_text(broken)
        spoken = world.settle(full=True)
        assert [each.field for each in spoken.problems] == ["--peer-router-passwords-file"]
        assert f"neighbor {PEER} password s3cret" in world.bgpd()
    file.unlink()
    assert "cannot be read" in str(world.settle(full=True).problems)
    assert f"neighbor {PEER} password s3cret" in world.bgpd()
    file.write_text("bmV3\n")
    assert world.settle(full=True).problems == ()
    assert f"neighbor {PEER} password new" in world.bgpd()


def test_secrets_are_read_when_an_annotation_names_them(make: Any) -> None:
    world = World(peer_addresses=(), peer_asns=())
    peers = (
        f"- remoteip: {PEER}\n  remoteasn: 65000\n  passwordsecretref: {{name: bgp, key: router}}\n"
    )
    world.secrets[SecretRef("bgp", "router")] = b"s3cret\n"
    world.put(make.node("node1", annotations={"kube-router.io/peers": peers}))
    assert world.settle(full=True).problems == ()
    assert f"neighbor {PEER} password s3cret" in world.bgpd()
    world.secrets[SecretRef("bgp", "router")] = b"other"
    world.settle(full=True)
    assert f"neighbor {PEER} password other" in world.bgpd()


def test_a_secret_that_cannot_be_read_for_a_moment_still_counts() -> None:
    answers: list[Any] = [b"first", KubeRouterError("no API server"), None]

    def read(ref: SecretRef) -> bytes | None:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    ref = SecretRef("bgp", "router")
    sources = PasswordSources(RoutingSettings(), "node1", read)
    assert sources.secrets({ref}) == {ref: b"first"}
    assert sources.secrets({ref}) == {ref: b"first"}
    assert "no API server" in str(sources.problems)
    assert sources.secrets({ref}) == {}
    assert sources.problems == ()


def test_an_api_server_that_does_not_answer_is_not_asked_for_each_secret() -> None:
    """Each question may take half a minute, and nothing is announced or withdrawn meanwhile."""
    now_s, asked = 0.0, []

    def read(ref: SecretRef) -> bytes | None:
        nonlocal now_s
        asked.append(ref)
        if is_slow:
            now_s += 30.0
            raise ApiError("no API server answers")
        return b"first"

    refs = {SecretRef("bgp", f"router{number}") for number in range(4)}
    sources = PasswordSources(RoutingSettings(), "node1", read, lambda: now_s)
    is_slow = False
    assert sources.secrets(refs) == dict.fromkeys(refs, b"first")
    is_slow, asked = True, []
    assert sources.secrets(refs) == dict.fromkeys(refs, b"first")
    assert len(asked) == 1
    assert len(sources.problems) == 4
    unread = SecretRef("bgp", "unread")
    sources.secrets({*refs, unread})
    assert asked[1:] == [unread]


@pytest.mark.parametrize("status", [0, 500, 403])
def test_a_session_survives_a_start_at_which_its_secret_cannot_be_read(
    make: Any, status: int
) -> None:
    world = World(peer_addresses=(), peer_asns=())
    peers = (
        f"- remoteip: {PEER}\n  remoteasn: 65000\n  passwordsecretref: {{name: bgp, key: router}}\n"
    )
    world.secrets[SecretRef("bgp", "router")] = b"s3cret"
    world.put(make.node("node1", annotations={"kube-router.io/peers": peers}))
    assert world.settle(full=True).is_settled

    def read(ref: SecretRef) -> bytes | None:
        if error is not None:
            raise error
        return b"s3cret"

    # The next agent, with the daemons of this one.
    error: ApiError | None = ApiError("not now", status)
    passwords = PasswordSources(world.settings, "node1", read, lambda: world.now_s)
    world.speaker = Speaker(world.cache, world.settings, "node1", FakeFrr(world.daemons), passwords)
    world.speaker.follow_node("node1")
    spoken = world.settle(full=True)
    assert "cannot be read (not now)" in str(spoken.problems)
    is_there = f"neighbor {PEER} password s3cret" in world.bgpd()
    if status == 403:  # it will not be there soon, and everything else must not wait
        assert not is_there
        return
    assert is_there
    assert not spoken.is_settled
    world.now_s += 1000.0
    spoken = world.settle(full=True)
    assert spoken.is_settled  # all else has waited for long enough
    assert PEER.compressed not in world.bgpd()
    assert spoken.wake_after_s is not None
    error = None
    assert world.settle() == spoken  # not asked for at every turn
    world.now_s += spoken.wake_after_s
    assert world.settle() == Spoken(is_settled=True, problems=())
    assert f"neighbor {PEER} password s3cret" in world.bgpd()


def test_what_frr_refuses_is_told_and_tried_again(world: World, make: Any) -> None:
    world.settle(full=True)
    world.put(make.service(ips=["10.96.0.10"]))
    refused = CommandResult("", 13, "% no")
    real = world.frr.apply
    world.frr.apply = lambda commands: {  # type: ignore[method-assign]
        daemon: tuple(refused for _ in batch) for daemon, batch in commands.items()
    }
    spoken = world.settle()
    assert not spoken.is_settled
    assert "FRR refuses" in str(spoken.problems)
    world.frr.apply = real  # type: ignore[method-assign]
    assert world.settle().is_settled
    assert "network 10.96.0.10/32" in world.bgpd()


def test_a_scrape_in_the_middle_of_a_change_leaves_nothing_behind(world: World, make: Any) -> None:
    """The number is asked for in another thread, which may be stopped at any moment."""

    class Shared(list[Any]):
        def __iter__(self) -> Any:
            found = list(super().__iter__())
            if found:
                services._sorted = []
                services._current = None  # as the loop's thread does, meanwhile
            return iter(found)

    world.put(make.service(ips=["10.96.0.10"]))
    services = world.speaker._services
    services._sorted, services._current = Shared(services._sorted), None
    assert world.speaker.announced == 1
    services._sorted = []
    assert services.current() == ()

"""The flags as the route controller takes them."""

import dataclasses
from ipaddress import IPv4Address
from typing import Any

import pytest
from msgspec import structs

from kube_router_py.option_flag import BGP, PEERS, POD_NETWORK
from kube_router_py.options import FLAGS, Options, parse
from kube_router_py.routing.model import Bfd, GracefulRestart
from kube_router_py.routing.settings import RoutingSettings, routing_settings

# Read by the loop that compiles, or by nobody (GoBGP's).
NOT_COMPILED = {
    "routes-sync-period",
    "injected-routes-sync-period",
    "gobgp-admin-address",
    "gobgp-admin-port",
    "frr-mode",
    "frr-dir",
}
OTHER = {
    "cni-conf-file": "/etc/cni/other.conf",
    "cni-conf-template": "/etc/cni/template.conf",
    "overlay-type": "full",
    "overlay-encap": "fou",
    "cluster-asn": "64999",
    "router-id": "10.0.0.9",
    "bgp-holdtime": "30s",
    "bgp-graceful-restart-time": "30s",
    "bgp-graceful-restart-deferral-time": "30s",
    "gobgp-admin-address": "127.0.0.2",
    "drain-delay": "30s",
    "frr-mode": "external",
    "frr-dir": "/run/other",
    "advertise-aggregate": "192.0.2.0/24",
    "advertise-specifics-to": "192.0.2.1",
    "peer-router-ips": "192.0.2.1",
    "peer-router-asns": "65000",
    "peer-router-ports": "1790",
    "peer-router-passwords": "c2VjcmV0",
    "peer-router-passwords-file": "/run/passwords",
}


def changed(flag: Any) -> Options:
    if flag.name in OTHER:
        value = flag.kind.parse(OTHER[flag.name])
    elif flag.kind.is_switch:
        value = not flag.default
    else:
        value = flag.default + 5
    return dataclasses.replace(Options(), **{flag.field: value})


@pytest.mark.parametrize(
    "flag",
    [flag for flag in FLAGS if flag.group in (BGP, PEERS, POD_NETWORK)],
    ids=lambda flag: flag.name,
)
def test_every_flag_is_taken_over(flag: Any) -> None:
    usual, other = routing_settings(Options()), routing_settings(changed(flag))
    assert (usual == other) is (flag.name in NOT_COMPILED)


def test_without_flags_settings_have_their_own_defaults_but_for_ranges_and_the_file() -> None:
    settings = routing_settings(Options())
    plain = structs.replace(
        RoutingSettings(),
        cluster_ranges=settings.cluster_ranges,
        cni_conf_file="/etc/cni/net.d/10-kuberouter.conf",
    )
    assert settings == plain
    assert settings.cluster_asn == 64512


def test_flags_become_values() -> None:
    options = parse(
        [
            "--enable-ipv6",
            "--router-id=10.0.0.7",
            "--bgp-graceful-restart",
            "--bgp-graceful-restart-time=2m",
            "--bgp-graceful-restart-deferral-time=18h",
            "--enable-bfd",
            "--bfd-detection-multiplier=5",
            "--bfd-required-min-rx-interval=200",
            "--bfd-desired-min-tx-interval=100",
        ],
        {},
    )
    settings = routing_settings(options)
    assert settings.versions == (4, 6)
    assert len(settings.families) == 2
    assert settings.router_id == IPv4Address("10.0.0.7")
    assert not settings.generate_router_id
    assert settings.graceful_restart_outside
    # FRR defers for an hour at most.
    assert settings.graceful_restart == GracefulRestart(restart_s=120, deferral_s=3600)
    assert settings.bfd == Bfd(
        detection_multiplier=5, receive_interval_ms=200, transmit_interval_ms=100
    )


def test_a_router_id_may_be_generated() -> None:
    settings = routing_settings(parse(["--router-id=generate"], {}))
    assert settings.generate_router_id
    assert settings.router_id is None


def test_times_that_nobody_checked_are_brought_into_range() -> None:
    """Without --bgp-graceful-restart any is taken, but nodes restart gracefully all the same."""
    options = parse(["--bgp-graceful-restart-time=0", "--bgp-graceful-restart-deferral-time=0"], {})
    assert routing_settings(options).graceful_restart == GracefulRestart(restart_s=1, deferral_s=1)
    options = parse(["--bgp-graceful-restart-time=9h"], {})
    assert routing_settings(options).graceful_restart.restart_s == 4095

"""Options: spellings, environment, checks, and that every mistake is told at once."""

import contextlib
import dataclasses
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube_router_py.errors import ConfigurationError
from kube_router_py.option_types import parse_duration, show_duration
from kube_router_py.options import FLAGS, Options, given_text, parse, scan


def mistakes(*argv: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        parse(argv, environ)
    return caught.value.messages


def test_nothing_given_means_the_defaults_of_kube_router():
    options = parse([], {})
    assert options == Options()
    assert (options.health_port, options.metrics_port, options.bgp_port) == (20244, 0, 179)
    assert options.service_cluster_ip_range == (ipaddress.ip_network("10.96.0.0/12"),)
    assert (options.run_router, options.run_loadbalancer) == (True, False)


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--ipvs-sync-period", "1m30s"], "ipvs_sync_period", 90.0),
        (["--ipvs-sync-period=500ms"], "ipvs_sync_period", 0.5),
        (["--hairpin-mode"], "hairpin_mode", True),
        (["--run-router=false"], "run_router", False),
        (["--run-router=0"], "run_router", False),
        (["--run-router=F"], "run_router", False),
        (["--hairpin-mode=T"], "hairpin_mode", True),
        (["-v", "2"], "v", 2),
        (["-v=3"], "v", 3),
        (["-v4"], "v", 4),
        (["--v=1"], "v", 1),
        (["--v", "1", "--v", "5"], "v", 5),
        (["--bfd-port=0x1000"], "bfd_port", 4096),
        (["--service-node-port-range=1000:2000"], "service_node_port_range", (1000, 2000)),
        (["--master=https://192.0.2.1:6443"], "master", "https://192.0.2.1:6443"),
        (["--cluster-asn=64512"], "cluster_asn", 64512),
        (["--service-tcp-timeout=2m"], "service_tcp_timeout", 120.0),
        (
            ["--excluded-cidrs=10.1.2.3/8", "--excluded-cidrs", "fd00::/8,192.0.2.0/24"],
            "excluded_cidrs",
            tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "fd00::/8", "192.0.2.0/24"))),
        ),
        (["--excluded-cidrs="], "excluded_cidrs", ()),
        (
            ["--advertise-aggregate=192.0.2.9/24"],
            "advertise_aggregate",
            (ipaddress.ip_network("192.0.2.0/24"),),
        ),
        (
            ["--advertise-specifics-to=10.0.0.1,::ffff:10.0.0.2,FD00:0::1,10.1.2.3/16,eth0.7"],
            "advertise_specifics_to",
            ("10.0.0.1", "10.0.0.2", "fd00::1", "10.1.0.0/16", "eth0.7"),
        ),
        (["--drain-delay=0s"], "drain_delay", 0.0),
    ],
)
def test_a_value_is_read_in_every_spelling(argv, field, value):
    assert getattr(parse(argv, {}), field) == value


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_takes_its_own_default_in_both_spellings_and_from_the_environment(flag):
    if not flag.default_text and flag.kind.is_list:
        return_to_default = [f"--{flag.name}="]
    else:
        return_to_default = [f"--{flag.name}={flag.default_text}"]
    assert parse(return_to_default, {}) == Options()
    if flag.default_text:
        assert parse([], {flag.environment: flag.default_text}) == Options()
        if not flag.kind.is_switch:
            assert parse([f"--{flag.name}", flag.default_text], {}) == Options()


def test_a_boolean_does_not_take_the_next_argument():
    (message,) = mistakes("--hairpin-mode", "false")
    assert "'false'" in message
    assert "--flag=false" in message


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["--overlay-type=mesh"], ["--overlay-type", "'mesh'", "subnet or full"]),
        (["--overlay-encap=gre"], ["--overlay-encap", "fou or vxlan"]),
        (["--overlay-encap-port=80"], ["--overlay-encap-port", "1024 to 65535"]),
        (["--ipvs-sync-period=0s"], ["--ipvs-sync-period", "'0s'", "more than 0s"]),
        (["--routes-sync-period=-5s"], ["--routes-sync-period", "'-5s'"]),
        (["--ipvs-sync-period=5"], ["'5'", "30s"]),
        (["--run-router=yes"], ["--run-router", "'yes'", "true or false"]),
        (["--cluster-asn=100"], ["--cluster-asn", "'100'", "64512"]),
        (["--bgp-holdtime=1s"], ["--bgp-holdtime", "at least 3s"]),
        (["--bfd-detection-multiplier=256"], ["1 to 255"]),
        (["--bfd-desired-min-tx-interval=0"], ["4294967295"]),
        (["--bgp-port=0"], ["--bgp-port"]),
        (["--excluded-cidrs=10.0.0.0/8,nonsense"], ["'nonsense'", "CIDR"]),
        (["--excluded-cidrs=10.0.0.1"], ["prefix length"]),
        (["--service-node-port-range=2000-1000"], ["--service-node-port-range", "lower"]),
        (["--service-node-port-range=1-70000"], ["--service-node-port-range"]),
        (["--service-cluster-ip-range=10.0.0.0/16,10.1.0.0/16"], ["one address family"]),
        (["--service-cluster-ip-range=10.0.0.0/16,fd00::/112"], ["--enable-ipv6"]),
        (["--service-cluster-ip-range="], ["--service-cluster-ip-range", "empty"]),
        (
            ["--nodeport-bindon-all-ip", "--nodeport-addresses=10.0.0.0/8"],
            ["--nodeport-addresses '10.0.0.0/8'", "--nodeport-bindon-all-ip"],
        ),
        (["--enable-ipv4=false"], ["no address family"]),
        (["--router-id=1.2.3"], ["--router-id", "generate"]),
        (["--health-addr=here"], ["--health-addr", "IP address"]),
        (["--metrics-path=metrics"], ["--metrics-path", "slash"]),
        (["--metrics-port=20244"], ["--metrics-port", "--health-port"]),
        (["--master=ftp://192.0.2.1"], ["--master", "https://"]),
        (["--hostname-override=Node_1"], ["--hostname-override", "kubectl get nodes"]),
        (["--runtime-endpoint=tcp://x"], ["unix"]),
        (["--service-udp-timeout=500ms"], ["whole seconds"]),
        (["--vip-mode=tunnel"], ["route or address"]),
        (["--peer-router-ips=192.0.2.1"], ["--peer-router-asns", "0 items"]),
        (["--peer-router-asns=64512"], ["--peer-router-asns", "1 items"]),
        (
            ["--peer-router-ips=192.0.2.1", "--peer-router-asns=64512", "--peer-router-ports=1,2"],
            ["--peer-router-ports", "2 items"],
        ),
        (["--peer-router-ips=192.0.2.1", "--peer-router-asns=23456"], ["'23456'", "reserved"]),
        (["--peer-router-ips=192.0.2.1", "--peer-router-asns=64000"], ["'64000'", "reserved"]),
        (
            ["--bgp-graceful-restart", "--bgp-graceful-restart-time=4096s"],
            ["--bgp-graceful-restart-time", "1h8m15s"],
        ),
        (
            ["--bgp-graceful-restart", "--bgp-graceful-restart-deferral-time=19h"],
            ["--bgp-graceful-restart-deferral-time", "18h"],
        ),
        (["--advertise-aggregate=0.0.0.0/0"], ["--advertise-aggregate", "1 to 31"]),
        (["--advertise-aggregate=192.0.2.1/32"], ["'192.0.2.1/32'", "gathers nothing"]),
        (["--advertise-aggregate=fd00::/64"], ["fd00::/64", "--enable-ipv6"]),
        (["--advertise-specifics-to=fe80::1%eth0"], ["'fe80::1%eth0'", "interface"]),
        (["--advertise-specifics-to=10.0.0.1 x"], ["'10.0.0.1 x'", "interface"]),
        (["--advertise-specifics-to=sixteen-letters-"], ["interface"]),
        (["--bgp-maximum-paths=0"], ["--bgp-maximum-paths", "1 to 256"]),
        (["--drain-delay=2h"], ["--drain-delay", "at most 1h"]),
        (["--kubeconfig"], ["--kubeconfig needs a value"]),
        (["--kubeconfig", "--hairpin-mode"], ["--kubeconfig needs a value"]),
        (["--run-routre=false"], ["--run-routre", "--run-router"]),
        (["-run-router"], ["two dashes"]),
        (["serve"], ["'serve'", "positional"]),
        (["--"], ["'--'"]),
        (["-x"], ["'-x'"]),
        (["-v", "loud"], ["--v", "'loud'"]),
        (["-v"], ["--v needs a value"]),
    ],
)
def test_a_mistake_names_flag_value_and_remedy(argv, fragments):
    text = "\n".join(mistakes(*argv))
    for fragment in fragments:
        assert fragment in text


def test_limits_of_graceful_restart_hold_only_where_it_is_on():
    assert parse(["--bgp-graceful-restart-time=2h"], {}).bgp_graceful_restart_time == 7200


def test_all_mistakes_are_told_at_once():
    messages = mistakes(
        "stray", "--overlay-type=mesh", "--ipvs-sync-period=0s", "--nonsense", "--enable-ipv4=0"
    )
    assert len(messages) == 5


def test_an_unknown_flags_value_is_no_second_mistake():
    assert len(mistakes("--nonsense", "value")) == 1


def test_environment_gives_a_value_and_a_flag_beats_it():
    environ = {"KUBE_ROUTER_IPVS_SYNC_PERIOD": "1m", "KUBE_ROUTER_EXCLUDED_CIDRS": "10.0.0.0/8"}
    assert parse([], environ).ipvs_sync_period == 60.0
    options = parse(["--ipvs-sync-period=2m", "--excluded-cidrs=192.0.2.0/24"], environ)
    assert options.ipvs_sync_period == 120.0
    assert options.excluded_cidrs == (ipaddress.ip_network("192.0.2.0/24"),)


def test_a_mistake_in_the_environment_names_the_variable():
    (message,) = mistakes(KUBE_ROUTER_OVERLAY_TYPE="mesh")
    assert "KUBE_ROUTER_OVERLAY_TYPE" in message
    assert "--overlay-type" in message


def test_variables_of_services_called_like_the_agent_are_ignored():
    environ = {
        "KUBE_ROUTER_SERVICE_HOST": "10.96.7.7",
        "KUBE_ROUTER_SERVICE_PORT": "80",
        "KUBE_ROUTER_PORT": "tcp://10.96.7.7:80",
        "KUBE_ROUTER_PORT_80_TCP_ADDR": "10.96.7.7",
        "KUBE_ROUTER_METRICS_PORT": "tcp://10.96.7.8:8080",  # of a Service kube-router-metrics
        "KUBE_ROUTER_HEALTH_PORT": "udp://10.96.7.9:53",
        "KUBE_ROUTER_MASTER": "",
    }
    assert parse([], environ) == Options()


def test_the_cni_file_comes_from_the_variable_that_kube_router_reads():
    environ = {"KUBE_ROUTER_CNI_CONF_FILE": "/etc/cni/net.d/99.conflist"}
    assert parse([], environ).cni_conf_file == "/etc/cni/net.d/99.conflist"


def test_passwords_are_decoded_and_never_shown():
    argv = ["--peer-router-ips=192.0.2.1,192.0.2.2", "--peer-router-asns=64512,64513"]
    options = parse([*argv, "--peer-router-passwords=aHVudGVyMg==,"], {})
    assert options.peer_router_passwords == ("hunter2", "")
    assert "hunter2" not in str(given_text(options))
    (message,) = mistakes(*argv, "--peer-router-passwords=hunter2!,")
    assert "hunter2" not in message


PEERS = ("--peer-router-ips=192.0.2.1,192.0.2.2", "--peer-router-asns=65001,65001")


@pytest.mark.parametrize(
    ("content", "flags", "fragments"),
    [
        (b"cGFzcw==,\n", PEERS, []),
        (b"cGFzcw==", (), []),
        (b"pass!,cGFzcw==", PEERS, ["item number 1", "base64"]),
        (b"\xff\xfe", (), ["item number 1"]),
        (b"cGFzcw==", PEERS, ["1 items", "has 2"]),
        (b"cGFzcw==", (*PEERS, "--peer-router-passwords=cGFzcw==,"), []),
        (None, PEERS, ["cannot be read", "correct the path"]),
    ],
)
def test_a_file_of_passwords_is_checked_at_the_start(tmp_path, content, flags, fragments):
    path = tmp_path / "passwords"
    if content is not None:
        path.write_bytes(content)
    argv = [*flags, f"--peer-router-passwords-file={path}"]
    if not fragments:
        parse(argv, {}, files=True)
        return
    with pytest.raises(ConfigurationError) as caught:
        parse(argv, {}, files=True)
    (message,) = caught.value.messages
    assert "pass!" not in message
    for fragment in ("--peer-router-passwords-file", str(path), *fragments):
        assert fragment in message


@pytest.mark.parametrize(("content", "word"), [(None, "No such file"), ("", "is empty")])
def test_a_kubeconfig_is_looked_at_only_where_it_is_needed(tmp_path, content, word):
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    argv = [f"--kubeconfig={path}"]
    assert parse(argv, {}).kubeconfig == str(path)
    with pytest.raises(ConfigurationError, match=word):
        parse(argv, {}, files=True)
    with pytest.raises(ConfigurationError, match="Is a directory"):
        parse([f"--kubeconfig={tmp_path}"], {}, files=True)


def test_a_cluster_without_ipv4_needs_no_range_by_flag():
    assert parse(["--enable-ipv4=false", "--enable-ipv6"], {}).service_cluster_ip_range == ()


@pytest.mark.parametrize(
    ("argv", "asked"),
    [(["-h"], "help"), (["--hairpin-mode", "--help", "rubbish"], "help"), (["-V"], "version")],
)
def test_help_and_version_stop_the_reading(argv, asked):
    request = scan(argv)
    assert request.asked == asked
    assert request.errors == []


def test_given_text_shows_what_differs_from_the_default():
    options = parse(["--ipvs-sync-period=90s", "--run-router=false", "--bgp-port=179"], {})
    assert given_text(options) == {"ipvs-sync-period": "1m30s", "run-router": "false"}


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().v = 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h", 3600.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("2ns", 2e-9),
        ("0", 0.0),
        ("-1m", -60.0),
        ("+3s", 3.0),
    ],
)
def test_durations_as_go_writes_them(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "1d", "s", "1m 30s", "--5s", "1m30", "1e3s", ".s"])
def test_what_go_refuses_as_a_duration(text):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.integers(0, 10**7))
def test_a_shown_duration_reads_back(milliseconds):
    seconds = milliseconds / 1000
    assert parse_duration(show_duration(seconds)) == pytest.approx(seconds)


@given(st.lists(st.text(max_size=20), max_size=6))
def test_rubbish_never_escapes_as_another_error(argv):
    with contextlib.suppress(ConfigurationError):
        parse(argv, {})

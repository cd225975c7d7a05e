"""The whole agent on fake adapters, against a small API server on loopback."""

import http.server
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

from kube_router_py.adapters import check_capabilities
from kube_router_py.agent import Agent, node_name, without_effect
from kube_router_py.cleanup import clean_up
from kube_router_py.cluster.decode import RESOURCES
from kube_router_py.cluster.objects import (
    EndpointSlice,
    Namespace,
    NetworkPolicy,
    Node,
    Pod,
    Service,
)
from kube_router_py.errors import ConfigurationError, KernelError, PreflightError
from kube_router_py.kernel.fake_frr import FakeDaemons, FakeFrr
from kube_router_py.kernel.fake_host import (
    FakeIpsetKernel,
    FakeIpsets,
    FakeIptables,
    FakeIptablesKernel,
    FakeLinkKernel,
    FakeLinks,
    FakeSysctls,
)
from kube_router_py.kernel.fake_ipvs import FakeIpvs
from kube_router_py.kernel.fake_overlay import fake_overlay
from kube_router_py.kernel.ports import HostPorts, IpsetSpec, Jump, TableRules
from kube_router_py.options import Options, parse
from kube_router_py.proxy.model import (
    IpvsOperation,
    RealServer,
    RealServerKey,
    Verb,
    VirtualServer,
    VirtualServerKey,
)
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.proxy.sysctls import sysctls
from kube_router_py.routing.controller import RoutingPorts

AF_INET = int(socket.AF_INET)
PARAMETERS = [each.name for each in sysctls(ProxyOptions(ipv4=True, ipv6=True), ("eth0",), (6, 1))]
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
KIND_NAMES = {resource.path: kind.__name__ for kind, resource in RESOURCES.items()}
KIND_NAMES[LEASES] = "Lease"


def packed(text):
    return socket.inet_pton(socket.AF_INET, text)


def service(name, cluster_ip, port=80):
    return {
        "metadata": {"name": name, "namespace": "default", "resourceVersion": "7"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv4"],
            "ports": [{"protocol": "TCP", "port": port, "targetPort": 8080}],
        },
    }


def slice_of(name, *addresses):
    return {
        "metadata": {
            "name": f"{name}-1",
            "namespace": "default",
            "resourceVersion": "8",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [a], "conditions": {"ready": True}} for a in addresses],
        "ports": [{"protocol": "TCP", "port": 8080}],
    }


NODE = {
    "metadata": {"name": "node1", "resourceVersion": "5"},
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]},
}


class Api:
    """Lists and watches of all kinds; ``changed`` wakes the watches."""

    def __init__(self):
        self.objects = {
            RESOURCES[Service].path: [service("kubernetes", "10.96.0.1", 443)],
            RESOURCES[EndpointSlice].path: [],
            RESOURCES[Node].path: [NODE],
            RESOURCES[Pod].path: [],
            RESOURCES[NetworkPolicy].path: [],
            RESOURCES[Namespace].path: [],
            LEASES: [],
        }
        self.revision = 10
        self.events = []
        self.changed = threading.Condition()
        self.stopping = False
        self.status = 200
        self.selectors = {}
        self.posted = []
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                path, _, query = self.path.partition("?")
                if api.status != 200:
                    self.send_error(api.status)
                elif "watch=true" in query:
                    self.stream(path)
                else:
                    api.selectors[path] = query
                    body = {
                        "kind": f"{KIND_NAMES[path]}List",
                        "metadata": {"resourceVersion": str(api.revision)},
                        "items": api.objects[path],
                    }
                    data = json.dumps(body).encode()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.posted.append((self.path, body))
                self.send_response(201)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def stream(self, path):
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                sent = 0
                while not api.stopping:
                    with api.changed:
                        new = api.events[sent:]
                        sent += len(new)
                        if not new:
                            api.changed.wait(0.5)
                    for where, event in new:
                        if where == path:
                            line = json.dumps(event).encode() + b"\n"
                            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass  # the agent hangs up when it stops

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def tell(self, kind, verb, obj):
        """Let the watches of a kind see an event, and all others a bookmark of that revision."""
        with self.changed:
            self.revision += 1
            obj["kind"] = kind.__name__
            obj["metadata"]["resourceVersion"] = str(self.revision)
            for each in (Service, EndpointSlice, Node, Pod, Namespace, NetworkPolicy):
                mark = {
                    "kind": each.__name__,
                    "metadata": {"resourceVersion": str(self.revision)},
                }
                event = {"type": verb, "object": obj} if each is kind else None
                self.events.append(
                    (RESOURCES[each].path, event or {"type": "BOOKMARK", "object": mark})
                )
            self.changed.notify_all()

    def stop(self):
        self.stopping = True
        with self.changed:
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def api():
    found = Api()
    yield found
    found.stop()


class FakeHost:
    """A fake kernel that survives agents, and adapters for each of them."""

    def __init__(self):
        self.links = FakeLinkKernel()
        self.sets = FakeIpsetKernel()
        self.rules = FakeIptablesKernel()
        self.ipvs = FakeIpvs()
        self.opened = 0
        self.refuse = None

    def open(self):
        self.opened += 1
        if self.refuse:
            raise self.refuse
        self.ipvs.closed = False  # it is kernel and adapter in one
        return HostPorts(
            self.ipvs,
            FakeLinks(kernel=self.links),
            FakeIpsets(self.sets),
            FakeIptables(self.rules),
            FakeSysctls(dict.fromkeys(PARAMETERS, "0")),
        )


def socket_in(directory):
    """So that no test answers for the host's own agent."""
    return f"--agent-socket={directory / 'agent.sock'}"


@pytest.fixture
def start(api, tmp_path, free_port):
    """Starts agents, each in a thread; what is left running at the end is stopped."""
    running = []

    def starter(*flags, host=None, environ=None):
        options = parse(
            [
                "--health-addr=127.0.0.1",
                f"--health-port={free_port()}",
                socket_in(tmp_path),
                *flags,
            ],
            {"KUBE_ROUTER_MASTER": api.url},
        )
        host = host or FakeHost()
        environ = {"NODE_NAME": "node1", **(environ or {})}
        agent = Agent(options, environ, host.open, client=connect_to(api))
        codes = []
        thread = threading.Thread(target=lambda: codes.append(agent.run()))
        thread.start()
        found = SimpleNamespace(
            agent=agent, host=host, codes=codes, thread=thread, port=options.health_port
        )
        running.append(found)
        return found

    yield starter
    for each in running:
        each.agent.end()
        each.thread.join(60)
        assert not each.thread.is_alive()


def connect_to(api):
    """A client without credentials, as for an unprotected port."""
    from kube_router_py.cluster.client import Client

    class NoCredentials:
        addresses = (api.url,)

        def configurations(self):
            from kubernetes.client import Configuration

            configuration = Configuration()
            configuration.host = api.url
            return (configuration,)

        def reload(self):
            pass

    return Client(NoCredentials())


def until(condition, what):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, f"gave up waiting for {what}"
        threading.Event().wait(0.02)
    return found


def ask(running, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}{path}", timeout=10) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def ready(running):
    status, body = ask(running, "/readyz")
    report = json.loads(body)
    assert (status == 200) == report["ready"]
    return report


def web_key(address="10.96.0.10", port=80):
    return VirtualServerKey(AF_INET, socket.IPPROTO_TCP, packed(address), port)


def test_the_agent_programs_what_the_api_says_and_says_when_it_has(api, start):
    api.objects[RESOURCES[Service].path].append(service("web", "10.96.0.10"))
    api.objects[RESOURCES[EndpointSlice].path].append(slice_of("web", "10.244.1.2", "10.244.2.2"))
    running = start()
    report = until(lambda: (found := ready(running))["applied_revision"] == 10 and found, "sync")
    assert report["node"] == "node1"
    assert report["loops"]["service-proxy"]["ready"]
    assert report["caches"]["Service"]["objects"] == 2
    assert ask(running, "/healthz")[0] == 200
    # A Node that comes later is one of the cluster's as well.
    assert "fieldSelector" not in api.selectors[RESOURCES[Node].path]
    table = running.host.ipvs.read()
    assert {real.address for real in table[web_key()].real_servers} == {
        packed("10.244.1.2"),
        packed("10.244.2.2"),
    }

    api.tell(EndpointSlice, "ADDED", slice_of("web", "10.244.1.2", "10.244.1.3"))
    until(lambda: ready(running)["applied_revision"] == 11, "the change")
    weights = {
        real.address: state.weight
        for real, state in running.host.ipvs.read()[web_key()].real_servers.items()
        if state.weight
    }
    assert set(weights) == {packed("10.244.1.2"), packed("10.244.1.3")}


def test_load_balancers_operators_and_dashboards_are_told(api, start, free_port):
    check, health, metrics = free_port(), free_port(), free_port()
    web = service("web", "10.96.0.10")
    web["spec"] |= {
        "type": "LoadBalancer",
        "externalIPs": ["198.51.100.1"],
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": check,
    }
    endpoints = slice_of("web", "10.244.1.2")
    endpoints["endpoints"][0]["nodeName"] = "node1"
    api.objects[RESOURCES[Service].path].append(web)
    api.objects[RESOURCES[EndpointSlice].path].append(endpoints)
    running = start(
        f"--healthz-bind-address=127.0.0.1:{health}",
        "--metrics-addr=127.0.0.1",
        f"--metrics-port={metrics}",
    )

    def page(port, path="/"):
        return ask(SimpleNamespace(port=port), path)

    until(lambda: ready(running)["applied_revision"] == 10, "sync")
    status, body = page(check)
    assert (status, json.loads(body)["localEndpoints"]) == (200, 1)
    status, body = page(health, "/healthz")
    assert (status, json.loads(body)["nodeEligible"]) == (200, True)
    # A taken-down endpoint, and a node about to go, are followed.
    gone = slice_of("web", "10.244.2.2")
    gone["metadata"]["annotations"] = {
        "endpoints.kubernetes.io/last-change-trigger-time": "2999-01-01T00:00:00Z"
    }
    api.tell(EndpointSlice, "MODIFIED", gone)
    until(lambda: page(check)[0] == 503, "no local endpoint")
    taint = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
    api.tell(Node, "MODIFIED", {**NODE, "spec": {**NODE["spec"], "taints": [taint]}})
    until(lambda: page(health, "/healthz")[0] == 503, "a node about to go")
    assert page(health, "/livez")[0] == 200
    ((path, event),) = until(lambda: [*api.posted], "an Event")
    assert path == "/api/v1/namespaces/default/events"
    assert event["reason"] == "AddressRefused"
    assert "198.51.100.1" in event["message"]
    for line in (
        b"kube_router_refused_addresses 1\n",
        b"kube_router_network_programming_duration_seconds_count 1.0\n",
    ):
        until(lambda line=line: line in page(metrics, "/metrics")[1], line)


def test_stopping_keeps_the_kernel_and_a_restart_writes_nothing(api, start):
    api.objects[RESOURCES[Service].path].append(service("web", "10.96.0.10"))
    api.objects[RESOURCES[EndpointSlice].path].append(slice_of("web", "10.244.1.2"))
    first = start()
    until(lambda: ready(first)["ready"], "the first agent")
    first.agent.end()
    first.thread.join(60)
    assert first.codes == [0]
    first.host.open()
    table = first.host.ipvs.read()
    assert web_key() in table
    writes = first.host.ipvs.writes
    second = start(host=first.host)
    until(lambda: ready(second)["ready"], "the second agent")
    assert second.host.ipvs.read() == table
    assert second.host.ipvs.writes == writes


def test_without_the_api_the_agent_lives_unready_and_says_why(api, start, caplog):
    api.status = 503
    running = start("--cache-sync-timeout=200ms")
    until(lambda: "no complete list yet kinds=" in caplog.text, "the log")
    report = ready(running)
    assert not report["ready"]
    everything = "EndpointSlice, Namespace, NetworkPolicy, Node, Pod, Service"
    assert f"waiting for the first list of {everything}" in report["reason"]
    assert ask(running, "/healthz")[0] == 200
    assert running.host.ipvs.writes == 0
    api.status = 200
    until(lambda: ready(running)["ready"], "the recovery")


def test_systemd_hears_what_the_agent_is_doing(api, start, tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(60)
        api.status = 503
        running = start(environ={"NOTIFY_SOCKET": path})
        assert listener.recv(200) == (
            b"READY=1\nSTATUS=waiting for the first lists of the API server"
        )
        api.status = 200
        assert listener.recv(200) == b"STATUS=following the API server as node1"
        running.agent.end()
        assert listener.recv(200) == b"STOPPING=1"


def test_a_host_that_cannot_be_opened_shows_in_readiness_not_in_liveness(api, start):
    host = FakeHost()
    host.refuse = PreflightError("no ip_vs in this kernel; load the module")
    running = start(host=host)
    report = until(
        lambda: "ip_vs" in (found := ready(running))["loops"]["service-proxy"]["reason"] and found,
        "the reason",
    )
    assert not report["ready"]
    assert ask(running, "/healthz")[0] == 200
    host.refuse = None
    until(lambda: ready(running)["ready"], "the recovery")


def test_metrics_are_served_when_asked_for(api, start, free_port):
    port = free_port()
    running = start(f"--metrics-port={port}", "--metrics-addr=127.0.0.1")
    until(lambda: ready(running)["ready"], "the agent")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as found:
        text = found.read().decode()
    for line in (
        'kube_router_cache_objects{kind="Service"} 1',
        'kube_router_cache_synced{kind="Node"} 1',
        'kube_router_controller_ready{loop="service-proxy"} 1',
        "kube_router_controller_ipvs_services_sync_time_count",
        'kube_router_kernel_writes_total{adapter="ipvs"}',
        "kube_router_controller_ipvs_services 1",
        "kube_router_build_info{",
    ):
        assert line in text


def test_metrics_that_fail_end_no_loop(api, start, free_port, monkeypatch, caplog):
    def fail(self, turn):
        raise RuntimeError("no more buckets")

    monkeypatch.setattr("kube_router_py.observe.metrics.Metrics.on_turn", fail)
    running = start(f"--metrics-port={free_port()}", "--metrics-addr=127.0.0.1")
    until(lambda: ready(running)["ready"], "the agent")
    assert ask(running, "/healthz")[0] == 200
    # The loop is ready before those who look on are told of the turn.
    until(lambda: "a turn was not observed loop=service-proxy" in caplog.text, "the log")


def test_a_port_that_is_taken_is_the_operators_mistake(api):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = parse(["--health-addr=127.0.0.1", f"--health-port={port}"], {})
        with pytest.raises(ConfigurationError, match=f"--health-port {port}.*in use"):
            Agent(options, {}, FakeHost().open, client=connect_to(api))


def test_a_way_to_the_api_through_its_own_service_is_refused():
    client = SimpleNamespace(addresses=("https://10.43.0.1:443",))
    environ = {"KUBERNETES_PORT_443_TCP_ADDR": "10.43.0.1"}
    options = parse(["--health-port=0"], {})
    with pytest.raises(ConfigurationError, match="ClusterIP"):
        Agent(options, environ, FakeHost().open, client=client)


def test_the_node_name_comes_from_flag_then_variable_then_host():
    environ = {"NODE_NAME": "from-env"}
    assert node_name(Options(hostname_override="from-flag"), environ) == "from-flag"
    assert node_name(Options(), environ) == "from-env"
    assert node_name(Options(), {"NODE_NAME": "from-env\n"}) == "from-env"


def test_the_hosts_name_is_taken_in_small_letters_and_only_if_a_node_can_have_it(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Worker-1.Example")
    assert node_name(Options(), {}) == "worker-1.example"
    monkeypatch.setattr(socket, "gethostname", lambda: "my_host")
    with pytest.raises(ConfigurationError, match=r"my_host.*--hostname-override"):
        node_name(Options(), {})
    with pytest.raises(ConfigurationError, match=r"NODE_NAME 'Worker-1'.*kubectl get nodes"):
        node_name(Options(), {"NODE_NAME": "Worker-1"})


def test_a_signal_may_interrupt_the_main_thread_anywhere(api, tmp_path):
    """Its handler runs between any two lines, those of waiting for the end included, and must not
    wait for a lock that the interrupted code holds."""
    options = parse(["--health-port=0", socket_in(tmp_path)], {})
    agent = Agent(options, {"NODE_NAME": "node1"}, FakeHost().open, client=connect_to(api))
    interrupted = 0

    def interrupt(frame, event, argument):
        nonlocal interrupted
        interrupted += 1
        agent.end()
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        code = agent.run()
    finally:
        sys.settrace(before)
    assert code == 0
    assert interrupted > 10


def test_the_start_up_log_says_what_changes_nothing():
    flags = ["--bgp-port=1179", "--enable-pprof", "--gobgp-admin-port=0", "--run-loadbalancer"]
    (text,) = without_effect(parse([*flags, "--loadbalancer-ip-range=192.0.2.0/24"], {}))
    assert "--enable-pprof" not in text
    assert "--gobgp-admin-port" in text
    assert "--bgp-port" not in text
    assert "loadbalancer" not in text
    assert list(without_effect(parse(["--run-firewall=false", "--run-router=false"], {}))) == []
    idle = ["--run-firewall=false", "--policy-drop-log=log", "--loadbalancer-layer2"]
    (text,) = without_effect(parse([*idle, "--loadbalancer-ip-range=192.0.2.0/24"], {}))
    assert text == "--policy-drop-log,--loadbalancer-layer2"


@pytest.mark.parametrize(("mask", "fails"), [("0000000000003000", False), ("0", True)])
def test_a_missing_capability_is_told_with_its_remedy(tmp_path, mask, fails):
    status = tmp_path / "status"
    status.write_text(f"Name:\tagent\nCapEff:\t{mask}\n")
    if fails:
        with pytest.raises(PreflightError, match="CAP_NET_ADMIN"):
            check_capabilities(status)
    else:
        check_capabilities(status)


def test_cleanup_removes_what_is_ours_and_says_so(api, start):
    api.objects[RESOURCES[Service].path].append(service("web", "10.96.0.10"))
    api.objects[RESOURCES[EndpointSlice].path].append(slice_of("web", "10.244.1.2"))
    foreign = web_key("203.0.113.5")
    flags = ("--excluded-cidrs=203.0.113.0/24",)
    running = start(*flags)
    until(lambda: ready(running)["ready"], "the agent")
    running.agent.end()
    running.thread.join(60)
    host = running.host
    host.open().ipvs.apply(
        [
            IpvsOperation(Verb.ADD_VIRTUAL_SERVER, foreign, config=VirtualServer()),
            IpvsOperation(
                Verb.ADD_REAL_SERVER,
                foreign,
                real_server=RealServerKey(AF_INET, packed("10.9.9.9"), 80),
                real=RealServer(),
            ),
        ]
    )
    said, routing = [], Routing()
    assert clean_up(
        parse(flags, {}),
        host.open(),
        routing.open,
        no_routing(host),
        lambda done: said.append(str(done)),
        **ALONE,
    )
    assert routing.removed == ["inet", "inet6"]
    assert set(host.ipvs.read()) == {foreign}
    assert host.links.link is None
    assert FakeIpsets(host.sets).read("kube-router-local-cidrs") is None
    assert not any("KUBE-ROUTER-MASQ" in chain for chain in host.rules.chains("inet", "nat"))
    assert set(host.rules.chains("inet", "filter")) == {"INPUT", "FORWARD", "OUTPUT"}
    assert host.sets.sets == {}
    text = "\n".join(said)
    assert "FRR's daemons: none runs any more" in text
    assert "tunnels, their routes and rules: nothing was there" in text
    assert "iptables inet nat KUBE-ROUTER-HAIRPIN KUBE-ROUTER-MASQ: removed" in text
    assert "2 removed, 1 in --excluded-cidrs kept" in text
    assert "link kube-dummy-if: removed" in text
    said.clear()
    again = clean_up(
        parse(flags, {}),
        host.open(),
        routing.open,
        no_routing(host),
        lambda done: said.append(str(done)),
        **ALONE,
    )
    assert again, "twice is as good as once"
    assert "link kube-dummy-if: nothing was there" in said
    assert not any(each.endswith(": removed") for each in said)


# Nobody else is on the node, and one variant of iptables is all that it has.
ALONE = {"running_mode": lambda: None, "other_variant": lambda *_: ()}


def no_routing(host):
    """The route controller's adapters on a node where it has never run."""

    def open_ports(down):
        ports = host.open()
        ports.ipvs = FakeIpvs()  # it would be closed for everybody
        return RoutingPorts(ports, fake_overlay(), FakeFrr(FakeDaemons()), None)

    return open_ports


class Routing:
    """What cleanup needs of direct server return's adapters."""

    def __init__(self):
        self.removed = []
        self.routing = self
        self.writes = 0

    def open(self):
        return self

    def remove(self, families):
        self.removed += ["inet6" if each == socket.AF_INET6 else "inet" for each in families]

    def close(self):
        pass


def test_cleanup_goes_on_after_a_step_that_fails():
    host = FakeHost()
    ports = host.open()

    class Broken:
        writes = 0
        variant = "iptables"

        def remove(self, family, table, chains):
            raise KernelError("iptables is not installed")

        def counters(self, family, table, chains):
            raise KernelError("iptables is not installed")

    host.links.set_up()
    ports.iptables = Broken()
    said = []
    assert not clean_up(
        parse([], {}),
        ports,
        Routing().open,
        no_routing(host),
        lambda done: said.append(str(done)),
        **ALONE,
    )
    assert host.links.link is None
    text = "\n".join(said)
    assert "FAILED: iptables is not installed" in text
    assert "inet6 nat KUBE-ROUTER-HAIRPIN KUBE-ROUTER-MASQ: not there" in text
    assert "inet6 filter, policies: not there" in text


def test_cleanup_leaves_the_policies_of_a_kube_router_beside_the_agent():
    """Its chains and sets are called as ours: what tells them apart is what only ours have."""
    host = FakeHost()
    ports = host.open()
    theirs = {"KUBE-ROUTER-FORWARD": ("-j KUBE-POD-FW-AAAAAAAAAAAAAAAA",)}
    theirs["KUBE-POD-FW-AAAAAAAAAAAAAAAA"] = ("-j REJECT",)
    jumps = (Jump("FORWARD", "-j KUBE-ROUTER-FORWARD"),)
    ports.iptables.ensure("inet", "filter", TableRules(theirs, jumps))
    ports.ipsets.ensure(IpsetSpec("KUBE-SRC-AAAAAAAAAAAAAAAA", "hash:ip", "inet"), frozenset())
    said = []
    assert clean_up(
        parse([], {}),
        host.open(),
        Routing().open,
        no_routing(host),
        lambda done: said.append(str(done)),
        **ALONE,
    )
    assert theirs.keys() <= host.rules.chains("inet", "filter").keys()
    assert "KUBE-SRC-AAAAAAAAAAAAAAAA" in host.sets.sets
    assert "iptables inet filter, policies: none of this agent's" in said

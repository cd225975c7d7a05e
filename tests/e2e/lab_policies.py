"""The cluster of policies.yaml: what policies it has, who should reach whom, and who does.

What should be is what ``kube_router_py.firewall.evaluate`` makes of the API's own objects.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lab_probes import OPEN, REFUSED, SILENT, UNREACHABLE, WATCH_PORTS, Answer, Probe, Prober, Watch

from kube_router_py.cluster.objects import Namespace, NetworkPolicy, Node, Pod, Service
from kube_router_py.firewall.evaluate import Evaluator, Flow
from kube_router_py.manifests import Manifests

Object = dict[str, Any]

NODES = ("node1", "node2")
NAMESPACES = ("x", "y", "z")
SERVED = (("TCP", 80), ("TCP", 81), ("UDP", 80), ("UDP", 81), ("SCTP", 80))
# Port of the Service and its NodePort, in front of the pod's port 80.
FRONT = {
    "x": {"TCP": (8080, 30480), "UDP": (8053, 30453), "SCTP": (8132, 30432)},
    "y": {"TCP": (8080, 30580), "UDP": (8053, 30553), "SCTP": (8132, 30532)},
}
BACKEND = {"x": "x/a", "y": "y/b"}
API_PORT = 6443
POLICIES = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
UNCHECKED = "?labValidation=off"
DEADLINE_S = 90.0


@dataclass(frozen=True)
class State:
    """All policies (spec by ``namespace/name``), and labels beside those of policies.yaml: of pods
    (``x/a``) and namespaces (``x``); None takes one away."""

    policies: Mapping[str, Object] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)


class Check(NamedTuple):
    """A probe, and the flow that it amounts to once destinations are translated."""

    probe: Probe
    flow: Flow


class Report(NamedTuple):
    """What a look at the whole matrix found; ``late``: right, but not at first."""

    flows: int
    open: int
    silent: int
    late: tuple[str, ...]
    wrong: tuple[str, ...]
    seconds: float


class World:
    """See the module docstring. ``prober`` sees pods as they are when it first asks them."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.api = cluster.api
        self.prober = Prober(self.network)
        pods = self.api.get("/api/v1/pods")["items"]
        self.addresses: dict[str, tuple[str, ...]] = {
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": tuple(
                each["ip"] for each in pod["status"]["podIPs"]
            )
            for pod in pods
            if pod["metadata"]["namespace"] in NAMESPACES
        }
        spaces = self.api.get("/api/v1/namespaces")["items"]
        self._labels: dict[str, dict[str, str]] = {
            "/".join(filter(None, (meta.get("namespace"), meta["name"]))): meta.get("labels") or {}
            for meta in (each["metadata"] for each in (*pods, *spaces))
        }
        self.node_of = {
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": pod["spec"]["nodeName"]
            for pod in pods
        }
        for host in (*NODES, "client", "apiserver"):
            self.addresses[host] = cluster.addresses(host)
        self.pods = sorted(name for name in self.addresses if "/" in name)
        self._services = {
            name: self.api.get(f"/api/v1/namespaces/{name}/services/front") for name in FRONT
        }
        self._state = State()
        self.checks = tuple(self._checks())

    def network(self, name: str) -> str:
        return str(self.cluster.state.netns_path(self.cluster.state.resolve(name)))

    def close(self) -> None:
        self.set(State())
        self.cluster.wait()
        self.prober.close()

    @contextmanager
    def watched(self, checks: Iterable[Check]) -> Iterator["History"]:
        """All of ``checks`` are asked all the while, from networks that stay."""
        prober = Prober(self.network, WATCH_PORTS)
        try:
            watch = Watch(prober, (check.probe for check in checks))
            history = History(watch)
            with watch:
                yield history
        finally:
            prober.close()

    # --- what is asked ---------------------------------------------------------------------------

    def _checks(self) -> Iterator[Check]:
        sources = {pod: pod for pod in self.pods} | {node: f"node/{node}" for node in NODES}
        for target in self.pods:
            for address in self.addresses[target]:
                for source, end in sources.items():
                    for protocol, port in SERVED:
                        probe = Probe(source, protocol, address, port)
                        yield Check(probe, Flow(end, target, protocol, port, _family(address)))
                # From outside of the cluster, straight to the pod.
                flow = Flow(self.address("apiserver", address), target, "TCP", 80)
                yield Check(Probe("apiserver", "TCP", address, 80), flow)
        for address in self.addresses["apiserver"]:  # and from pods to the outside
            for pod in self.pods:
                flow = Flow(pod, address, "TCP", API_PORT, _family(address))
                yield Check(Probe(pod, "TCP", address, API_PORT), flow)
        for name in FRONT:
            yield from self._through_service(name, sources)

    def _through_service(self, name: str, sources: Mapping[str, str]) -> Iterator[Check]:
        """Policies are about the packet behind the translation of its destination."""
        backend = BACKEND[name]
        for protocol, (port, node_port) in FRONT[name].items():
            for address in self._services[name]["spec"]["clusterIPs"]:
                for source, end in sources.items():
                    if source != backend:  # a pod's way to itself by a Service is another matter
                        flow = Flow(end, backend, protocol, 80, _family(address))
                        yield Check(Probe(source, protocol, address, port), flow)
            for pod in self.pods:
                for address in self.addresses[self.node_of[pod]] if pod != backend else ():
                    flow = Flow(pod, backend, protocol, 80, _family(address))
                    yield Check(Probe(pod, protocol, address, node_port), flow)
            for node in NODES:
                for address in self.addresses[node]:
                    # Behind another node than the backend's, that node's own address is seen.
                    host = "client" if node == self.node_of[backend] else node
                    flow = Flow(self.address(host, address), backend, protocol, 80)
                    yield Check(Probe("client", protocol, address, node_port), flow)

    def address(self, name: str, like: str) -> str:
        """The address of a host or pod in the family of ``like``."""
        return next(each for each in self.addresses[name] if (":" in each) == (":" in like))

    check = Check
    flow = Flow

    @staticmethod
    def state(
        policies: Mapping[str, Object], labels: Mapping[str, Mapping[str, str | None]]
    ) -> State:
        return State(policies, labels)

    # --- what there is ---------------------------------------------------------------------------

    def set(self, state: State) -> None:
        """Write what differs: policies that are new or changed first, labels, what has to go."""
        before = self._state
        for key, spec in state.policies.items():
            if before.policies.get(key) != spec:
                self._put_policy(key, spec, key in before.policies)
        for key in {*before.labels, *state.labels}:
            old, new = before.labels.get(key, {}), state.labels.get(key, {})
            if old != new:
                labels = {name: self._labels[key].get(name) for name in old} | dict(new)
                self.api.merge(_object(key), {"metadata": {"labels": labels}})
        for key in before.policies.keys() - state.policies.keys():
            namespace, _, name = key.partition("/")
            self.api.delete(f"{POLICIES.format(namespace)}/{name}")
        self._state = state

    def _put_policy(self, key: str, spec: Object, is_there: bool) -> None:
        namespace, _, name = key.partition("/")
        path = POLICIES.format(namespace)
        document = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
        if is_there:
            self.api.request("PUT", f"{path}/{name}{UNCHECKED}", document)
        else:
            self.api.create(f"{path}{UNCHECKED}", document)

    def evaluator(self) -> Evaluator:
        """Of what the API holds now."""
        found = Manifests()
        for kind, path in (
            ("Pod", "/api/v1/pods"),
            ("Namespace", "/api/v1/namespaces"),
            ("Node", "/api/v1/nodes"),
            ("NetworkPolicy", "/apis/networking.k8s.io/v1/networkpolicies"),
        ):
            document = {**self.api.get(path), "kind": f"{kind}List"}
            found.add(document, path, "IPv4")
        return Evaluator(
            found.list(Pod),
            found.list(Namespace),
            found.list(NetworkPolicy),
            found.list(Node),
            found.list(Service),
        )

    def expected(self, checks: Iterable[Check]) -> dict[Probe, bool]:
        evaluator = self.evaluator()
        known: dict[Flow, bool] = {}
        for _, flow in checks:
            if flow not in known:
                known[flow] = evaluator.evaluate(flow).allowed
        return {probe: known[flow] for probe, flow in checks}

    # --- what is ---------------------------------------------------------------------------------

    def compare(self, deadline_s: float = DEADLINE_S) -> Report:
        """The whole matrix, until it is as it should be or the deadline is over."""
        began = time.monotonic()
        expected = self.expected(self.checks)
        answers = first = self.prober.ask(expected)
        at_first = differing = self.differing(expected, answers)
        while differing and time.monotonic() < began + deadline_s:
            answers = answers | self.prober.ask(differing)
            differing = self.differing(expected, answers)
        return Report(
            flows=len(expected),
            open=sum(answer.outcome == OPEN for answer in answers.values()),
            silent=sum(answer.outcome in (SILENT, UNREACHABLE) for answer in answers.values()),
            late=tuple(f"{p} was {first[p].outcome}" for p in at_first if p not in differing),
            wrong=tuple(
                f"{probe} is {answers[probe].outcome}: {self._why(probe)}" for probe in differing
            ),
            seconds=time.monotonic() - began,
        )

    @staticmethod
    def differing(expected: Mapping[Probe, bool], answers: Mapping[Probe, Answer]) -> list[Probe]:
        return [p for p, is_open in expected.items() if (answers[p].outcome == OPEN) != is_open]

    def _why(self, probe: Probe) -> str:
        flow = next(check.flow for check in self.checks if check.probe == probe)
        verdict = self.evaluator().evaluate(flow)
        return f"should be {OPEN if verdict.allowed else REFUSED}: {flow}: {verdict.reason}"


class History:
    """Which state there was when, and whether each answer is that of one there was meanwhile."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._began = time.monotonic()
        # When it began to be written, and what is expected of it.
        self._states: list[tuple[float, Mapping[Probe, bool]]] = []
        # When everybody was known to have applied it, by its position.
        self._settled: dict[int, float] = {}

    @property
    def rounds(self) -> int:
        return self._watch.rounds

    def changing(self, expected: Mapping[Probe, bool], began: float | None = None) -> None:
        """Call before the first write of a change, or with the time.monotonic() of then."""
        self._states.append((time.monotonic() if began is None else began, expected))

    def settled(self) -> None:
        """Call when everything written so far is known to be applied."""
        self._settled[len(self._states) - 1] = time.monotonic()

    def _possible(self, answer: Answer) -> tuple[int, int]:
        """The first and the last state that can have been in force meanwhile."""
        last = max(i for i, (began, _) in enumerate(self._states) if began <= answer.ended)
        first = max((i for i, at in self._settled.items() if at <= answer.began), default=0)
        return first, last

    def judge(self) -> "Judgement":
        """Of all answers since the first state was settled."""
        start = min(self._settled.values())
        steady, during, wrong = Counter[str](), Counter[str](), []
        longest_s = 0.0
        for probe, answer in self._watch.answers:
            if answer.began < start:
                continue
            first, last = self._possible(answer)
            allowed = {expected[probe] for _, expected in self._states[first : last + 1]}
            (steady if first == last else during)[answer.outcome] += 1
            longest_s = max(longest_s, answer.ended - answer.began)
            if answer.outcome != UNREACHABLE and (answer.outcome == OPEN) not in allowed:
                wrong.append(
                    f"{probe} was {answer.outcome} {answer.began - start:.2f} s to "
                    f"{answer.ended - start:.2f} s after the start, in states {first} to {last}"
                )
        return Judgement(steady, during, tuple(wrong), time.monotonic() - self._began, longest_s)


class Judgement(NamedTuple):
    """Outcomes while nothing changed and while something did, and those that no state explains."""

    steady: Counter[str]
    during: Counter[str]
    wrong: tuple[str, ...]
    seconds: float
    longest_s: float

    def __str__(self) -> str:
        total = self.steady.total() + self.during.total()
        return (
            f"{total} verdicts in {self.seconds:.0f} s ({total / self.seconds:.0f}/s): "
            f"{self.steady.total()} while nothing changed {dict(self.steady)}, "
            f"{self.during.total()} meanwhile {dict(self.during)}; {len(self.wrong)} wrong; "
            f"the slowest took {self.longest_s:.2f} s{''.join(self.wrong[:3])}"
        )


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def _object(key: str) -> str:
    namespace, _, pod = key.partition("/")
    return f"/api/v1/namespaces/{namespace}" + (f"/pods/{pod}" if pod else "")

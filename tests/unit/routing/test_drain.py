"""Draining: who asks for it, and the steps in time."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from kube_router_py.cluster.objects import NodeCondition, NodeStatus
from kube_router_py.routing.drain import (
    DRAIN_ANNOTATION,
    Stage,
    drain_cause,
    drain_stage,
    drain_steps,
)
from kube_router_py.routing.settings import RoutingSettings

PLAIN = RoutingSettings()
WILLING = RoutingSettings(drain_on_cordon=True, withdraw_on_exit=True)


@pytest.mark.parametrize(
    ("given", "settings", "signals", "word"),
    [
        ({}, WILLING, {}, ""),
        ({"annotations": {DRAIN_ANNOTATION: "true"}}, PLAIN, {}, DRAIN_ANNOTATION),
        ({"annotations": {DRAIN_ANNOTATION: " 1 "}}, PLAIN, {}, DRAIN_ANNOTATION),
        ({"annotations": {DRAIN_ANNOTATION: "false"}}, PLAIN, {}, ""),
        ({"unschedulable": True}, PLAIN, {}, ""),
        ({"unschedulable": True}, WILLING, {}, "cordoned"),
        # The annotation does not keep a cordoned node: either asks for it.
        (
            {"unschedulable": True, "annotations": {DRAIN_ANNOTATION: "false"}},
            WILLING,
            {},
            "cordoned",
        ),
        # A stop means a restart: nothing is withdrawn.
        ({}, PLAIN, {"is_exiting": True}, ""),
        ({}, WILLING, {"is_exiting": True}, "--withdraw-on-exit"),
    ],
)
def test_who_asks_for_it(
    make: Any,
    given: dict[str, Any],
    settings: RoutingSettings,
    signals: dict[str, bool],
    word: str,
) -> None:
    cause, problems = drain_cause(make.node(**given), settings, **signals)
    assert bool(cause) == bool(word)
    assert word in cause
    assert problems == ()


@pytest.mark.parametrize("text", ["", "yes", "drain\n", "\x00"])
def test_an_annotation_that_says_neither_is_told(make: Any, text: str) -> None:
    node = make.node(annotations={DRAIN_ANNOTATION: text}, unschedulable=True)
    cause, problems = drain_cause(node, PLAIN)
    assert cause == ""
    assert [(each.object, each.field) for each in problems] == [
        ("Node node1", f"metadata.annotations[{DRAIN_ANNOTATION}]")
    ]
    assert str(problems[0]).isprintable()
    cause, problems = drain_cause(node, WILLING)
    assert "cordoned" in cause
    assert len(problems) == 1


def test_without_a_node_only_the_signals_count() -> None:
    assert drain_cause(None, WILLING) == ("", ())
    assert drain_cause(None, WILLING, is_exiting=True)[0]


def test_first_the_mark_then_the_withdrawal() -> None:
    assert [(each.after_s, each.stage) for each in drain_steps(PLAIN)] == [
        (0, Stage.MARKED),
        (5, Stage.WITHDRAWN),
    ]
    assert drain_stage(None, PLAIN) == (Stage.SERVING, None)
    assert drain_stage(0, PLAIN) == (Stage.MARKED, 5)
    assert drain_stage(4.5, PLAIN) == (Stage.MARKED, 0.5)
    assert drain_stage(5, PLAIN) == (Stage.WITHDRAWN, None)
    assert drain_stage(1e9, PLAIN) == (Stage.WITHDRAWN, None)


def test_without_a_delay_both_at_once() -> None:
    assert drain_stage(0, RoutingSettings(drain_delay_s=0)) == (Stage.WITHDRAWN, None)


@given(st.floats(0, 3600), st.floats(0, 7200))
def test_whoever_waits_as_told_comes_to_the_end(delay: float, elapsed: float) -> None:
    settings = RoutingSettings(drain_delay_s=delay)
    stage, wait = drain_stage(elapsed, settings)
    assert (wait is None) == (stage is Stage.WITHDRAWN)
    if wait is not None:
        assert wait > 0
        assert drain_stage(elapsed + wait + 1e-6, settings) == (Stage.WITHDRAWN, None)


@pytest.mark.parametrize(
    ("status", "message", "word"),
    [
        ("False", "node is shutting down", "shuts down"),
        ("False", "[container runtime is down, node is shutting down]", "shuts down"),
        ("False", "container runtime is down", ""),
        ("True", "kubelet is posting ready status", ""),
    ],
)
def test_the_kubelet_says_that_the_node_shuts_down(
    make: Any, status: str, message: str, word: str
) -> None:
    conditions = (NodeCondition("DiskPressure"), NodeCondition("Ready", status, message))
    node = structs.replace(make.node(), status=NodeStatus(conditions=conditions))
    cause, problems = drain_cause(node, PLAIN)
    assert (word in cause if word else not cause, problems) == (True, ())

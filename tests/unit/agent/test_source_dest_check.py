"""AWS' source/destination check."""

import threading
from typing import Any

import pytest

from kube_router_py.source_dest_check import Instance, Once, instance_of, switch_off

INSTANCE = Instance("eu-central-1", "i-0abc")


class Ec2:
    def __init__(self, failures: int = 0) -> None:
        self.failures, self.calls = failures, []

    def connect(self, region: str) -> "Ec2":
        self.region = region
        return self

    def modify_instance_attribute(self, **arguments: Any) -> None:
        self.calls.append(arguments)
        if len(self.calls) <= self.failures:
            raise RuntimeError("UnauthorizedOperation")


@pytest.mark.parametrize(
    ("provider", "found"),
    [
        ("aws:///eu-central-1a/i-0abc", INSTANCE),
        ("aws://eu-central-1b/i-0abc", INSTANCE),
        ("aws:///us-west-2-lax-1a/i-1", Instance("us-west-2", "i-1")),
        ("aws:///us-gov-west-1c/i-2", Instance("us-gov-west-1", "i-2")),
        ("aws:///nowhere/i-2", None),
        ("gce://project/zone/name", None),
        ("aws:///eu-central-1a/fargate-ip-1", None),
        ("", None),
    ],
)
def test_which_instance_a_node_is(provider: str, found: Instance | None) -> None:
    assert instance_of(provider) == found


def test_it_is_switched_off_and_tried_again() -> None:
    ec2, waits = Ec2(failures=2), []
    assert switch_off(INSTANCE, ec2.connect, waits.append)
    assert ec2.region == "eu-central-1"
    assert ec2.calls[-1] == {"InstanceId": "i-0abc", "SourceDestCheck": {"Value": False}}
    assert len(ec2.calls) == 3
    assert len(waits) == 2


def test_what_stands_in_the_way_is_told_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    assert not switch_off(INSTANCE, Ec2(failures=99).connect, lambda seconds: None)
    assert "UnauthorizedOperation" in caplog.text
    assert "aws ec2 modify-instance-attribute --region eu-central-1" in caplog.text


def test_without_the_sdk_it_is_said_so_at_once(caplog: pytest.LogCaptureFixture) -> None:
    def connect(region: str) -> None:
        raise ImportError("No module named 'boto3'")

    waits: list[float] = []
    assert not switch_off(INSTANCE, connect, waits.append)
    assert waits == []
    assert "kube-router-py[aws]" in caplog.text


def test_it_is_done_once() -> None:
    done, seen = threading.Event(), []

    def switch(instance: Instance) -> None:
        seen.append(instance)
        done.set()

    once = Once(switch)
    once.follow("")
    once.follow("aws:///eu-central-1a/i-0abc")
    once.follow("aws:///eu-central-1a/i-0abc")
    assert done.wait(60)
    assert seen == [INSTANCE]

"""AWS: instances drop packets that are neither from nor to their own addresses (the source and
destination check), so that pods are not reached by routes. Here it is switched off.

It takes AWS' own SDK, which is no dependency: ``pip install kube-router-py[aws]``; and the
permission ec2:ModifyInstanceAttribute for the instance or for the pod's role.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from tenacity import RetryError, Retrying, stop_after_attempt, wait_random_exponential

_log = logging.getLogger(__name__)

# What is behind it names the availability zone or the local zone.
_REGION = re.compile(r"[a-z]+(-[a-z]+)+-[0-9]+")
_ATTEMPTS = 5
_LONGEST_WAIT_S = 60.0


class Instance(Struct, frozen=True):
    """An EC2 instance, as Node.spec.providerID names it: ``aws:///ZONE/ID``."""

    region: str
    id: str

    @property
    def remedy(self) -> str:
        return (
            f"aws ec2 modify-instance-attribute --region {self.region} --instance-id {self.id} "
            "--no-source-dest-check"
        )


def instance_of(provider_id: str) -> Instance | None:
    """The instance that a Node is; None if it is none of AWS'."""
    scheme, _, rest = provider_id.partition("://")
    zone, _, identity = rest.lstrip("/").partition("/")
    if scheme != "aws" or not zone or not identity.startswith("i-"):
        return None
    region = _REGION.match(zone)
    return Instance(region[0], identity) if region else None


def _ec2(region: str) -> Any:
    import boto3  # type: ignore[import-not-found,unused-ignore]

    return boto3.client("ec2", region_name=region)


def switch_off(
    instance: Instance,
    connect: Callable[[str], Any] = _ec2,
    wait: Callable[[float], None] = time.sleep,
) -> bool:
    """Switch the check off; whether that was done. What stands in the way is logged."""
    retrying = Retrying(
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_random_exponential(max=_LONGEST_WAIT_S),
        retry=lambda state: (
            state.outcome is not None
            and state.outcome.failed
            and not isinstance(state.outcome.exception(), ImportError)
        ),
        sleep=wait,
    )
    try:
        retrying(
            lambda: connect(instance.region).modify_instance_attribute(
                InstanceId=instance.id, SourceDestCheck={"Value": False}
            )
        )
    except ImportError:
        reason = "no AWS SDK is installed (pip install kube-router-py[aws])"
    except RetryError as error:
        reason = str(error.last_attempt.exception())
    else:
        _log.info("AWS: the source/destination check is off instance=%s", instance.id)
        return True
    _log.error(
        "AWS: the source/destination check may still drop packets of pods instance=%s reason=%r "
        "remedy=%r",
        instance.id,
        reason,
        instance.remedy,
    )
    return False


class Once:
    """Switches the check off the first time that a Node tells of an instance of AWS, in a thread:
    AWS may answer late or never."""

    def __init__(self, switch: Callable[[Instance], object] = switch_off) -> None:
        self._switch = switch
        self._thread: threading.Thread | None = None

    def follow(self, provider_id: str) -> None:
        instance = instance_of(provider_id) if self._thread is None else None
        if instance is not None:
            thread = threading.Thread(
                target=self._switch, args=(instance,), name="source-dest-check", daemon=True
            )
            thread.start()  # may fail, for want of threads; then the next turn tries again
            self._thread = thread

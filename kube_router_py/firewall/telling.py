"""What became of each policy, as lines of the log that name it."""

import logging
from collections.abc import Container, Iterable

from kube_router_py.object_key import Key

_log = logging.getLogger(__name__)

_MOST_LINES = 20


def tell_policies(keys: Iterable[Key], known: Container[Key]) -> None:
    """Those among ``keys`` were compiled anew and programmed; who is not ``known`` is gone."""
    policies = sorted(key for key in keys if key.kind == "NetworkPolicy")
    for key in policies[:_MOST_LINES]:
        if key in known:
            _log.info("programmed policy=%s", key.name)
        else:
            _log.info("the policy is gone policy=%s", key.name)
    if len(policies) > _MOST_LINES:
        _log.info("programmed more policies count=%d", len(policies) - _MOST_LINES)

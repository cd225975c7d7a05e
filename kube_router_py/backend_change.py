"""When the variant of iptables that the agent uses is another than before (--iptables-backend, or
what it finds on the node): what it left in the former one goes, once the new rules stand."""

import logging
from collections.abc import Callable

from kube_router_py.errors import KernelError
from kube_router_py.kernel.other_variant import remove_from_other_variant

_log = logging.getLogger(__name__)

# Rules of a family that is switched off now would go on deciding, too.
_FAMILIES = ("inet", "inet6")


class BackendChange:
    """``is_own``: the chains of the part that asks; ``settled`` is called in its loop's thread."""

    def __init__(self, is_own: Callable[[str], bool]) -> None:
        self._is_own = is_own
        self._done_for = ""

    def settled(self, variant: str) -> None:
        """The part's rules stand in this variant: look once at the other."""
        if self._done_for == variant:
            return
        try:
            for what in remove_from_other_variant(variant, _FAMILIES, self._is_own):
                _log.info("removed from the other variant of iptables what=%r", what)
            self._done_for = variant
        except KernelError as error:
            _log.warning("rules in the other variant of iptables stay reason=%r", str(error))

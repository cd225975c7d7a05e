"""What FRR was told of addresses of Services, as lines of the log that name the Services."""

import ipaddress
import logging
from collections.abc import Callable, Iterable

from kube_router_py.routing.model import Address

_log = logging.getLogger(__name__)

# Of one turn: the first of an agent may announce thousands.
_MOST_LINES = 20


class Telling:
    """``services_at`` names the Services that want an address announced, the first one's terms
    count."""

    def __init__(self, services_at: Callable[[Address], Iterable[str]]) -> None:
        self._services_at = services_at
        # Whose an address was when it was announced: at its end nobody may ask for it any more.
        self._services: dict[str, str] = {}
        self._turn: dict[str, bool] = {}

    def note(self, prefix: str, *, is_announced: bool) -> None:
        """bgpd took a command about a prefix; the last one of a turn counts."""
        self._turn[prefix] = is_announced

    def tell(self) -> None:
        """The turn is over."""
        turn, self._turn = self._turn, {}
        told = 0
        for prefix, is_announced in sorted(turn.items()):
            network = ipaddress.ip_network(prefix)
            if network.num_addresses > 1:
                continue  # what many Services have in common
            address = network.network_address
            services = ",".join(self._services_at(address))
            before = self._services.pop(prefix, "")
            if is_announced:
                self._services[prefix] = services
                if services == before:
                    continue  # by other terms
            told += 1
            if told > _MOST_LINES:
                continue
            if is_announced:
                _log.info("FRR announces address=%s services=%s", address, services)
            else:
                _log.info(
                    "FRR announces no more address=%s services=%s", address, before or services
                )
        if told > _MOST_LINES:
            _log.info("FRR announces, or no more, other addresses count=%d", told - _MOST_LINES)

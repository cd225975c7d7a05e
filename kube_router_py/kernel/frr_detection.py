"""How long peers take to miss our BFD packets (RFC 5880, 6.8.4). Pure.

A peer that finds BFD down resets the BGP session, and with it goes what graceful restart keeps. It
does not matter while there is no session: so a bgpd that starts before all peers have noticed that
bfdd was gone loses its new sessions, and its routes, a moment later (seen with FRR 8.4 on both
sides, 300 ms x 3: a set that was back after 0.2 s and after 0.7 s was reset, after 1.4 s not).
"""

import re

from msgspec import DecodeError, Struct, ValidationError, json

# bfdd's own values, which it leaves out of what it shows.
_INTERVAL_MS, _MULTIPLIER = 300, 3
_TRANSMIT = re.compile(r"^\s*transmit-interval (\d+)\s*$", re.MULTILINE)
_DETECT = re.compile(r"^\s*detect-multiplier (\d+)\s*$", re.MULTILINE)
# Timers of peers run from the last packet that came, which was sent before; this is for slow ones.
_MARGIN_S = 0.3
# Peers that take longer are not waited for: they drop routes that graceful restart keeps, later.
_LONGEST_S = 20.0


class _Peer(Struct, rename="kebab"):
    transmit_interval: int = _INTERVAL_MS
    remote_receive_interval: int = 0
    detect_multiplier: int = _MULTIPLIER


def detection_s(file: str, peers: str) -> float:
    """After how many seconds without bfdd all peers know.

    ``file`` is bfdd's configuration, ``peers`` what ``show bfd peers json`` last said, or nothing.
    """
    intervals = [_INTERVAL_MS, *map(int, _TRANSMIT.findall(file))]
    multipliers = [_MULTIPLIER, *map(int, _DETECT.findall(file))]
    longest = max(intervals) * max(multipliers)
    try:
        known = json.decode(peers, type=list[_Peer]) if peers else []
    except (DecodeError, ValidationError):
        known = []
    for peer in known:
        interval = max(peer.transmit_interval, peer.remote_receive_interval)
        longest = max(longest, interval * peer.detect_multiplier)
    return min(longest / 1000, _LONGEST_S) + _MARGIN_S

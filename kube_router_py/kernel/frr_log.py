"""What FRR's daemons write to their logs, line by line into ours, without keys.

The logs are files in the run directory: they outlive the agent, which reads on where it finds them.
What has been read of a long one is cut off.
"""

import logging
import os
import re

from kube_router_py.kernel.frr_process import Layout, cut_log
from kube_router_py.kernel.frr_vty import masked

_log = logging.getLogger(__name__)

_KEPT_BYTES = 1 << 20
_READ_BYTES = 1 << 18
# 2026/11/21 12:42:04 BGP: [SHWNK-NWT5S][EC 100663304] text: the time and the name are ours to give,
# the first code is that of the message, the second that of an error.
_LINE = re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d+)? [A-Z]+: (?:\[[A-Z0-9-]+\])?")
_ERROR = re.compile(r"\[EC \d+\] ?")
# Errors to zebra, and nothing that concerns us: that a daemon has ended is told by who ended it.
_HARMLESS = re.compile(r"Disabling MPLS support|Client '\w+' encountered an error")


class DaemonLog:
    """The log of one daemon, read from its present end on."""

    def __init__(self, daemon: str, layout: Layout) -> None:
        self._daemon = daemon
        self._layout = layout
        self._path = layout.path(daemon, "log")
        self._part = b""
        try:
            self._offset = os.stat(self._path).st_size
        except OSError:
            self._offset = 0

    def forward(self) -> list[str]:
        """Log what is new, at most as much as is taken at once; the same lines, for complaints."""
        lines = [_told(line) for line in self._new_lines()]
        for line in lines:
            _log.log(_level(line), "FRR says daemon=%s text=%r", self._daemon, _ERROR.sub("", line))
        return [_ERROR.sub("", line) for line in lines]

    def _new_lines(self) -> list[bytes]:
        try:
            with open(self._path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._offset:  # somebody else has cut it
                    self._offset, self._part = 0, b""
                file.seek(self._offset)
                data = file.read(_READ_BYTES)
            self._offset += len(data)
            if self._offset >= _KEPT_BYTES and self._offset == size:
                cut_log(self._layout, self._daemon)
                self._offset = 0
        except OSError:
            return []
        *whole, self._part = (self._part + data).split(b"\n")
        return [line for line in whole if line.strip()]


def _told(line: bytes) -> str:
    return masked(_LINE.sub("", line.decode(errors="backslashreplace"), count=1).strip())


def _level(line: str) -> int:
    if line.startswith("%"):  # %ADJCHANGE, %NOTIFICATION: what operators look for
        return logging.INFO
    return logging.WARNING if _ERROR.search(line) and not _HARMLESS.search(line) else logging.DEBUG

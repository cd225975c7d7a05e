"""Logs: one line per event, readable by people, with ``key=value`` fields for machines.

    2026-01-31T12:00:00.123Z WARNING proxy: virtual server removed service=default/web

Modules use the standard library's loggers and write their fields into the message; ``log_fields``
finds them again for systemd's journal, and tests hold what a message looks like. Where lines go is
decided in ``log_targets``.

Verbosity is that of ``-v``: 0 tells what a human may want to act on or look up later, 2 everything
about each change. An exception becomes one field that says where it arose; its whole traceback is
shown from 2 on.
"""

import logging
import os
import time
import traceback
from enum import Enum, auto

PACKAGE = "kube_router_py"

# sd-daemon(3): the numbers are syslog's severities.
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
_SHOWN_FRAMES = 6

# Objects are written by strangers: what they say must neither begin a line of its own nor move the
# cursor of a terminal that shows it.
_HARMLESS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
# Nor show it in another order than it is written in: UAX #9, 2.
_HARMLESS |= {
    code: f"\\u{code:04x}"
    for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_HARMLESS |= {ord("\n"): " ", ord("\t"): " ", 0x2028: " ", 0x2029: " "}


class Prefix(Enum):
    """What a line begins with."""

    TIME = auto()
    PRIORITY = auto()  # <N>, for a stderr that leads into the journal: sd-daemon(3)
    NONE = auto()  # the journal has both, as fields


class LineFormatter(logging.Formatter):
    """Formats a record as one line, or as several where a whole traceback is wanted."""

    def __init__(self, *, prefix: Prefix, tracebacks: bool) -> None:
        super().__init__()
        self._prefix = prefix
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        text = harmless(record.getMessage())
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text += f' at="{origin(error)}"'
        lines = [f"{record.levelname} {_short_name(record.name)}: {text}"]
        if error is not None and self._tracebacks:
            lines += [f"  {line}" for line in traceback_lines(error)]
        prefix = self._prefix_of(record)
        return "\n".join(prefix + line for line in lines)

    def _prefix_of(self, record: logging.LogRecord) -> str:
        match self._prefix:
            case Prefix.TIME:
                at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
                return f"{at}.{int(record.msecs):03d}Z "
            case Prefix.PRIORITY:
                return f"<{priority(record.levelno)}>"
            case Prefix.NONE:
                return ""


def harmless(text: str) -> str:
    """Text that strangers wrote, as one line that does nothing to a terminal."""
    return text.translate(_HARMLESS)


def traceback_lines(error: BaseException) -> list[str]:
    """An exception's whole traceback, of which no line does anything to a terminal."""
    parts = (part.rstrip("\n").split("\n") for part in traceback.format_exception(error))
    return [harmless(line) for lines in parts for line in lines]


def priority(level: int) -> int:
    """The syslog severity of a logging level."""
    return next(number for floor, number in _PRIORITIES if level >= floor)


def origin(error: BaseException) -> str:
    """Where an exception arose: its innermost frames, the innermost first."""
    frames = traceback.extract_tb(error.__traceback__)[::-1][:_SHOWN_FRAMES]
    places = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in frames)
    return f"{type(error).__name__} {places}".strip()


def _short_name(name: str) -> str:
    """``proxy`` for ``kube_router_py.proxy.controller``; names of others as they are."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return name
    return parts[1] if len(parts) > 1 else "agent"

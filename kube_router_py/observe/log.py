"""Logs: one line per event, readable by people, with ``key=value`` fields for machines.

    2026-01-31T12:00:00.123Z WARNING proxy: virtual server removed service=default/web

Modules use the standard library's loggers and write their fields into the message. Under systemd's
journal (stderr is the journal: JOURNAL_STREAM names it, see systemd.exec(5)) the time is left out
and each line begins with its syslog priority ``<N>``, so that ``journalctl -p warning`` works.

Verbosity is that of ``-v``: 0 tells what a human may want to act on or look up later, 2 everything
about each change. An exception becomes one field that says where it arose; its whole traceback is
shown from 2 on.
"""

import logging
import os
import time
import traceback
from collections.abc import Mapping
from typing import TextIO

_PACKAGE = "kube_router_py"

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
_HARMLESS |= {ord("\n"): " ", ord("\t"): " ", 0x2028: " ", 0x2029: " "}


class LineFormatter(logging.Formatter):
    """Formats a record as one line, or as several where a whole traceback is wanted."""

    def __init__(self, *, journal: bool, tracebacks: bool) -> None:
        super().__init__()
        self._journal = journal
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        text = harmless(record.getMessage())
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text += f' at="{origin(error)}"'
        lines = [f"{record.levelname} {_short_name(record.name)}: {text}"]
        if error is not None and self._tracebacks:
            for part in traceback.format_exception(error):
                shown = map(harmless, part.rstrip("\n").split("\n"))
                lines += [f"  {line}" for line in shown]
        if self._journal:
            prefix = f"<{priority(record.levelno)}>"
        else:
            at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            prefix = f"{at}.{int(record.msecs):03d}Z "
        return "\n".join(prefix + line for line in lines)


def harmless(text: str) -> str:
    """Text that strangers wrote, as one line that does nothing to a terminal."""
    return text.translate(_HARMLESS)


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
    if parts[0] != _PACKAGE:
        return name
    return parts[1] if len(parts) > 1 else "agent"


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a stream leads straight into systemd's journal."""
    try:
        device, inode = map(int, environ.get("JOURNAL_STREAM", "").split(":"))
        status = os.fstat(stream.fileno())
    except (ValueError, OSError):
        return False
    return (status.st_dev, status.st_ino) == (device, inode)


def configure(verbosity: int, stream: TextIO, environ: Mapping[str, str]) -> None:
    """Send the logs of the whole process to ``stream``, from level ``-v`` = ``verbosity`` up."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        LineFormatter(journal=is_journal(stream, environ), tracebacks=verbosity >= 2)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries tell at info what only concerns themselves (each connection, each retry).
    root.setLevel(logging.DEBUG if verbosity >= 4 else logging.WARNING)
    logging.getLogger(_PACKAGE).setLevel(logging.DEBUG if verbosity >= 1 else logging.INFO)
    # Nobody reads a report about a log line that could not be written (a closed pipe).
    logging.raiseExceptions = False
    logging.captureWarnings(True)

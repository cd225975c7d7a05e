"""Where the log goes: lines on stderr, records to systemd's journal.

In a container both: ``kubectl logs`` shows the one, ``journalctl`` on the node the other. Under
systemd stderr leads into the journal already (JOURNAL_STREAM names it, see systemd.exec(5)): there
it gets records alone, as those have fields, and lines with their priority only while it takes none.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

from kube_router_py.observe.journal import SOCKET, JournalHandler, JournalSocket
from kube_router_py.observe.log import (
    PACKAGE,
    LineFormatter,
    Prefix,
    harmless,
    priority,
    traceback_lines,
)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a stream leads straight into systemd's journal."""
    try:
        device, inode = map(int, environ.get("JOURNAL_STREAM", "").split(":"))
        status = os.fstat(stream.fileno())
    except (ValueError, OSError):
        return False
    return (status.st_dev, status.st_ino) == (device, inode)


def configure(
    verbosity: int,
    stream: TextIO,
    environ: Mapping[str, str],
    *,
    node: str = "",
    journal: str = "off",
    path: Path = SOCKET,
) -> None:
    """Send the logs of the whole process to ``stream``, from level ``-v`` = ``verbosity`` up.

    ``journal`` is the value of --log-journal: ``auto`` writes to the journal's socket at ``path``
    whenever there is one, ``on`` counts it as a loss where there is none, ``off`` does not look.
    """
    tracebacks = verbosity >= 2
    in_journal = is_journal(stream, environ)
    lines = logging.StreamHandler(stream)
    prefix = Prefix.PRIORITY if in_journal else Prefix.TIME
    lines.setFormatter(LineFormatter(prefix=prefix, tracebacks=tracebacks))
    handlers: list[logging.Handler] = [lines]
    if journal != "off":
        records = JournalHandler(
            JournalSocket(path),
            node=node,
            tracebacks=tracebacks,
            instead=lines if in_journal else None,
            is_wanted=journal == "on",
        )
        handlers = [records] if in_journal else [lines, records]
    root = logging.getLogger()
    for old in _journals():
        old.close()
    root.handlers[:] = handlers
    # Libraries tell at info what only concerns themselves (each connection, each retry).
    root.setLevel(logging.DEBUG if verbosity >= 4 else logging.WARNING)
    logging.getLogger(PACKAGE).setLevel(logging.DEBUG if verbosity >= 1 else logging.INFO)
    # Nobody reads a report about a log line that could not be written (a closed pipe).
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    _catch_escaped(is_told_whole=in_journal)


def _catch_escaped(*, is_told_whole: bool) -> None:
    """Log what nobody catches, which Python itself only prints; there it stays in a container, as
    the line is short. Hooks of others stay."""
    log = logging.getLogger(f"{PACKAGE}.agent")

    def escaped(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.critical("an exception escaped", exc_info=(kind, error, trace))
        if not is_told_whole:
            _show(error)

    def escaped_thread(told: threading.ExceptHookArgs) -> None:
        if told.exc_value is not None and told.exc_type is not SystemExit:
            found = (told.exc_type, told.exc_value, told.exc_traceback)
            log.critical("an exception ended a thread", exc_info=found)
            if not is_told_whole:
                _show(told.exc_value)

    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = escaped
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = escaped_thread


def _show(error: BaseException) -> None:
    """As Python would, but that strangers may have written what the exception says."""
    print(*traceback_lines(error), sep="\n", file=sys.stderr)


def dropped() -> int:
    """How many records the journal did not get."""
    return sum(each.dropped for each in _journals())


def _journals() -> list[JournalHandler]:
    return [each for each in logging.getLogger().handlers if isinstance(each, JournalHandler)]


def complain(messages: Iterable[str], environ: Mapping[str, str], *, journal: bool) -> None:
    """Tell on stderr why there is nothing more to do, one line each; in the journal as an error.

    With ``journal``, that of an agent that does not start, which ``journalctl`` is to show from
    within a container, too.
    """
    in_journal = is_journal(sys.stderr, environ)
    prefix = f"<{priority(logging.ERROR)}>" if in_journal else ""
    records = None
    if journal and not in_journal:
        node = environ.get("NODE_NAME", "").strip()
        records = JournalHandler(JournalSocket(), node=node, tracebacks=False)
    for message in messages:
        text = " ".join(map(harmless, message.splitlines()))
        print(f"{prefix}kube-router-py: {text}", file=sys.stderr)
        if records is not None:
            record = logging.LogRecord(
                f"{PACKAGE}.agent",
                logging.ERROR,
                __file__,
                0,
                "not started reason=%r",
                (text,),
                None,
            )
            records.handle(record)
    if records is not None:
        records.close()

"""Writes records to systemd's journal, by its native protocol.

Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. One datagram is one record. Each is sent to the
path, as libsystemd does it: a journald that was restarted has another socket there, and there is no
connection to renew. Nothing here waits or raises: a journal that does not keep up, or is away,
costs records, which are counted, and the loss is told when it takes records again.

(systemd-python and cysystemd are extensions of C that need libsystemd in the image;
logging-journald waits for a journal that hangs, and its fields are its own.)
"""

import errno
import fcntl
import logging
import os
import socket
import struct
import traceback
from collections.abc import Iterable
from enum import Enum, auto
from pathlib import Path

from kube_router_py.observe.log import LineFormatter, Prefix, priority
from kube_router_py.observe.log_fields import fields, values

SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "kube-router-py"

_LENGTH = struct.Struct("<Q")
# As libsystemd's: room for what is written while journald is busy.
_SEND_BUFFER = 8 * 1024 * 1024
_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; Python has no name for it
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Sent(Enum):
    """What became of a datagram."""

    TAKEN = auto()
    FULL = auto()  # journald does not keep up
    ABSENT = auto()  # there is no journald, or none that listens to us


def encode(pairs: Iterable[tuple[str, str]]) -> bytes:
    """A record as the payload of a datagram.

    A value with a newline is written with its length, so that no value can add a field.
    """
    parts = []
    for name, text in pairs:
        value = text.encode("utf-8", "backslashreplace")
        head = name.encode("ascii")
        if b"\n" in value:
            parts += [head, b"\n", _LENGTH.pack(len(value)), value, b"\n"]
        else:
            parts += [head, b"=", value, b"\n"]
    return b"".join(parts)


class JournalSocket:
    """Sends datagrams to journald's socket at ``path``."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        except OSError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def is_there(self) -> bool:
        """Whether there is a socket that we may write to."""
        return os.access(self._path, os.W_OK) and Path(self._path).is_socket()

    def send(self, payload: bytes) -> Sent:
        """Hand one record over, or say at once that it is not taken."""
        try:
            try:
                self._socket.sendto(payload, self._path)
            except OSError as error:
                if error.errno not in _TOO_LARGE:
                    raise
                self._send_file(payload)
        except BlockingIOError:
            return Sent.FULL
        except OSError as error:
            return Sent.FULL if error.errno in _TOO_LARGE else Sent.ABSENT
        return Sent.TAKEN

    def _send_file(self, payload: bytes) -> None:
        file = os.memfd_create("journal-record", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(file, "wb", closefd=False) as writer:
                writer.write(payload)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            # socket.send_fds of Python 3.11 leaves the address out.
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", file))
            self._socket.sendmsg((), (rights,), 0, self._path)
        finally:
            os.close(file)

    def close(self) -> None:
        self._socket.close()


class JournalHandler(logging.Handler):
    """Writes log records with their fields.

    ``node`` is the name of this node. ``instead`` gets the records that no journald is there for,
    None: they are on stderr anyway. With ``is_wanted`` a journal that never was there is a loss,
    without it simply none.
    """

    def __init__(
        self,
        to: JournalSocket,
        *,
        node: str,
        tracebacks: bool,
        instead: logging.Handler | None = None,
        is_wanted: bool = False,
    ) -> None:
        super().__init__()
        self.dropped = 0
        self._to = to
        self._node = node
        self._instead = instead
        self._is_expected = is_wanted
        self._untold = 0
        self._pid = str(os.getpid())
        self.setFormatter(LineFormatter(prefix=Prefix.NONE, tracebacks=tracebacks))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            payload = encode(self._fields(record))
        except Exception:  # noqa: BLE001 - an argument that cannot be written, of whatever kind
            self._lose()
            return
        sent = self._to.send(payload)
        if sent is Sent.TAKEN:
            self._is_expected = True
            if self._untold:
                self._tell_loss()
            return
        if sent is Sent.ABSENT and self._instead is not None:
            self._instead.handle(record)
        elif sent is Sent.FULL or self._is_expected:
            self._lose()

    def close(self) -> None:
        self._to.close()
        super().close()

    def _lose(self) -> None:
        self.dropped += 1
        self._untold += 1

    def _tell_loss(self) -> None:
        lost, self._untold = self._untold, 0
        text = "log records did not get into the journal count=%d"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (lost,), None)
        if self._to.send(encode(self._fields(record))) is not Sent.TAKEN:
            self._untold += lost

    def _fields(self, record: logging.LogRecord) -> list[tuple[str, str]]:
        found = [
            ("MESSAGE", self.format(record)),
            ("PRIORITY", str(priority(record.levelno))),
            ("SYSLOG_IDENTIFIER", IDENTIFIER),
            ("SYSLOG_PID", self._pid),
            ("CODE_FILE", record.pathname),
            ("CODE_LINE", str(record.lineno)),
            ("CODE_FUNC", record.funcName or ""),
            ("LOGGER", record.name),
            ("THREAD", record.threadName or ""),
        ]
        if self._node:
            found.append(("KUBE_NODE", self._node))
        found += fields(values(record.msg, record.args or ()))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            found.append(("EXCEPTION", type(error).__name__))
            found.append(("TRACEBACK", "".join(traceback.format_exception(error))))
        return found

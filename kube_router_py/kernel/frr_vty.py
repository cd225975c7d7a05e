"""FRR's control sockets: what vtysh(1) says to a daemon, without vtysh.

A daemon listens on ``RUN_DIR/NAME.vty`` (unix(7), stream). A command is its text and a NUL; the
reply is text, three NULs and one byte, the result code. Commands are sent without waiting for
replies, which come in order. There are no transactions: what a batch had done before it was cut off
stays done. FRR 8.4: lib/vty.c, vtysh_read and vtysh_write.

A client belongs to one thread. A daemon that was restarted is connected to anew, unseen, as long as
nothing was under way.
"""

import errno
import re
import selectors
import socket
import time
from collections.abc import Callable, Sequence

from kube_router_py.errors import KernelError, StateUnknownError
from kube_router_py.kernel.ports_frr import CommandResult

_RECEIVE_BYTES = 1 << 18
_TRAILER = 4
# A line that holds a key, in a file, a command, an echo or a daemon's complaint about any of them.
_SECRET = re.compile(r"(?i)(\bpassword[ \t]+)\S.*")


class VtyUnavailableError(KernelError):
    """The daemon cannot be talked to (not running, no permission); nothing was sent."""


class VtyLostError(StateUnknownError):
    """The daemon did not answer in time, or ended meanwhile; what it did of it is not known."""


class UnsafeCommandError(KernelError):
    """A command holds a character that would make it more than one command; nothing was sent."""


def masked(text: str) -> str:
    """The text with what follows ``password`` on any line replaced by stars."""
    return _SECRET.sub(r"\1***", text)


class VtyClient:
    """Commands to one daemon. ``timeout_s`` is for a whole batch; ``connections`` counts how often
    it was connected to: whenever that is once more, it may be another process."""

    def __init__(
        self, path: str, timeout_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._clock = clock
        self._socket: socket.socket | None = None
        self.connections = 0

    def show(self, command: str, timeout_s: float | None = None) -> CommandResult:
        """One command outside of the configuration."""
        return self.run((command,), timeout_s)[0]

    def configure(
        self, commands: Sequence[str], timeout_s: float | None = None
    ) -> tuple[CommandResult, ...]:
        """Configuration commands from the top level on, in one batch; a result for each.

        A command that fails does not stop those behind it.
        """
        if not commands:
            return ()
        results = self.run(("configure terminal", *commands, "end"), timeout_s)
        if results[0].is_failed:
            self.close()
            raise KernelError(f"{self.path} cannot be configured: {results[0].complaint}")
        return results[1:-1]

    def run(
        self, commands: Sequence[str], timeout_s: float | None = None
    ) -> tuple[CommandResult, ...]:
        """Raises UnsafeCommandError, VtyUnavailableError or VtyLostError."""
        wire = b"".join(_encoded(each) for each in commands)
        deadline = self._clock() + (self._timeout_s if timeout_s is None else timeout_s)
        if self._socket is not None and _has_ended(self._socket):
            self.close()
        if self._socket is None:
            self._socket = self._connected(deadline)
            self.connections += 1
            # Of a new connection nothing is known: what it may do is asked for first.
            wire, commands = b"enable\0" + wire, ("enable", *commands)
            return self._exchange(self._socket, wire, commands, deadline)[1:]
        return self._exchange(self._socket, wire, commands, deadline)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self, deadline: float) -> socket.socket:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            found.settimeout(max(deadline - self._clock(), 0.001))
            found.connect(self.path)
            found.setblocking(False)
        except OSError as error:
            found.close()
            reason = error.strerror or "it does not accept connections"
            hint = ""
            if error.errno in (errno.EACCES, errno.EPERM):
                hint = "; run the agent as root or in the group frrvty"
            raise VtyUnavailableError(
                f"{self.path}: {reason}{hint}", error.errno or errno.ETIMEDOUT
            ) from error
        return found

    def _exchange(
        self, connection: socket.socket, wire: bytes, commands: Sequence[str], deadline: float
    ) -> tuple[CommandResult, ...]:
        replies: list[CommandResult] = []
        try:
            self._pump(connection, wire, commands, replies, deadline)
        except (TimeoutError, OSError) as error:
            self.close()
            after = masked(commands[len(replies)])
            if isinstance(error, TimeoutError):
                raise VtyLostError(
                    f"{self.path} did not answer in time: {after!r}", errno.ETIMEDOUT
                ) from error
            raise VtyLostError(
                f"{self.path} closed the connection at {after!r}", error.errno or errno.EPIPE
            ) from error
        return tuple(replies)

    def _pump(
        self,
        connection: socket.socket,
        wire: bytes,
        commands: Sequence[str],
        replies: list[CommandResult],
        deadline: float,
    ) -> None:
        """Send and receive side by side: a daemon whose replies nobody takes reads no more."""
        rest = memoryview(wire)
        buffer = bytearray()
        scanned = 0
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while len(replies) < len(commands):
                left = deadline - self._clock()
                ready = selector.select(left) if left > 0 else []
                if not ready:
                    raise TimeoutError
                if ready[0][1] & selectors.EVENT_WRITE:
                    rest = rest[connection.send(rest) :]
                    if not rest:
                        selector.modify(connection, selectors.EVENT_READ)
                if ready[0][1] & selectors.EVENT_READ:
                    data = connection.recv(_RECEIVE_BYTES)
                    if not data:
                        raise ConnectionResetError(errno.ECONNRESET, "end of file")
                    buffer += data
                    scanned = _take(buffer, scanned, commands, replies)


def _take(
    buffer: bytearray, scanned: int, commands: Sequence[str], replies: list[CommandResult]
) -> int:
    """Move whole replies out of the buffer; how much of what is left holds no NUL."""
    start = 0
    while len(replies) < len(commands):
        end = buffer.find(0, max(start, scanned))
        if end < 0:
            scanned = len(buffer)
            break
        if end + _TRAILER > len(buffer):
            scanned = end
            break
        text = buffer[start:end].decode(errors="backslashreplace")
        replies.append(CommandResult(commands[len(replies)], buffer[end + _TRAILER - 1], text))
        start = scanned = end + _TRAILER
    del buffer[:start]
    return max(scanned - start, 0)


def is_one_command(text: str) -> bool:
    """Whether the text is one command and no more, and can be sent at all."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encoded(command: str) -> bytes:
    if not is_one_command(command):
        raise UnsafeCommandError(f"not a command for FRR: {masked(command)!r}", errno.EINVAL)
    return command.encode() + b"\0"


def _has_ended(connection: socket.socket) -> bool:
    """Whether the other side has gone since the last reply; nothing else can be waiting there."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True

"""The workload of every pod in the lab: says who answered whom.

    python3 -I -S pod_server.py POD NAMESPACE NODE [PORT/PROTOCOL]...

Each port answers one JSON line ``{pod, namespace, node, client, client_port, protocol, port}``:
over TCP as HTTP/1.1 (``GET /stream?interval=0.1`` goes on sending lines until the client leaves),
over UDP and SCTP one datagram for each received. Prints ``ready`` once all ports are open.

After SIGTERM it serves on, as a well-behaved server does whose endpoint is being withdrawn, and
ends when nobody has asked for ``IDLE_S``; a stream counts as somebody asking.

One process runs per pod, often under emulation: imports are few on purpose (no json, no asyncio).
"""

import selectors
import signal
import socket
import sys
import time

IDLE_S = 5.0
MAX_REQUEST = 65536
IPPROTO_SCTP = 132


def quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def plain(address: str) -> str:
    """An address as the client knows it: no zone, no IPv4-mapped form."""
    address = address.split("%")[0]
    return address[7:] if address.startswith("::ffff:") and "." in address else address


class Connection:
    """One TCP connection: bytes read, bytes to send, and the stream's next line if it streams."""

    def __init__(self, sock: socket.socket, client: tuple[str, int], port: int) -> None:
        self.sock = sock
        self.client = client
        self.port = port
        self.read = b""
        self.unsent = b""
        self.interval_s = 0.0
        self.due = 0.0
        self.lines = 0
        self.close_after = False


class Server:
    """All ports of one pod in one loop."""

    def __init__(self, pod: str, namespace: str, node: str) -> None:
        self._identity = f'{{"pod":{quote(pod)},"namespace":{quote(namespace)},"node":{quote(node)}'
        self._selector = selectors.DefaultSelector()
        self._streams: set[Connection] = set()
        self._last_request = 0.0
        self._ending = False

    def terminate(self, *_: object) -> None:
        self._ending = True
        self._last_request = time.monotonic()

    def listen(self, port: int, protocol: str) -> None:
        """Open one port for both families; raises OSError."""
        kind, number = {
            "TCP": (socket.SOCK_STREAM, 0),
            "UDP": (socket.SOCK_DGRAM, 0),
            "SCTP": (socket.SOCK_SEQPACKET, IPPROTO_SCTP),
        }[protocol]
        try:
            sock = socket.socket(socket.AF_INET6, kind, number)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            wildcard = "::"
        except OSError:  # a kernel without IPv6
            sock = socket.socket(socket.AF_INET, kind, number)
            wildcard = "0.0.0.0"
        sock.setblocking(False)
        if protocol == "TCP":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((wildcard, port))
        if protocol != "UDP":
            sock.listen(1024)
        handler = self._accept if protocol == "TCP" else self._datagram
        self._selector.register(sock, selectors.EVENT_READ, (handler, (sock, port, protocol)))

    def run(self) -> None:
        """Serve until told to end and idle."""
        while True:
            now = time.monotonic()
            for stream in [s for s in self._streams if s.due <= now]:
                self._stream_line(stream, now)
            waits = [stream.due - now for stream in self._streams]
            if self._ending:
                waits.append(0.2)
            # A signal does not end select() by itself (PEP 475): wake up now and then.
            timeout = max(0.0, min([0.5, *waits]))
            ready = self._selector.select(timeout)
            for key, _ in ready:
                handler, argument = key.data
                handler(argument)
            # Idle is only who has looked and found nothing: one that was held up has to serve what
            # has come meanwhile.
            is_asked = bool(ready or self._streams)
            if self._ending and not is_asked and now - self._last_request > IDLE_S:
                return

    def _answer(self, client: str, client_port: int, protocol: str, port: int) -> str:
        self._last_request = time.monotonic()
        return (
            f'{self._identity},"client":"{plain(client)}","client_port":{client_port}'
            f',"protocol":"{protocol}","port":{port}}}\n'
        )

    def _datagram(self, bound: tuple[socket.socket, int, str]) -> None:
        sock, port, protocol = bound
        try:
            _, address = sock.recvfrom(MAX_REQUEST)
            sock.sendto(self._answer(address[0], address[1], protocol, port).encode(), address)
        except OSError:
            pass  # the client has gone, or an ICMP error of an earlier answer

    def _accept(self, bound: tuple[socket.socket, int, str]) -> None:
        listener, port, _ = bound
        try:
            sock, address = listener.accept()
        except OSError:
            return  # gone before we looked
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock, (address[0], address[1]), port)
        self._selector.register(sock, selectors.EVENT_READ, (self._readable, connection))

    def _close(self, connection: Connection) -> None:
        self._streams.discard(connection)
        self._selector.unregister(connection.sock)
        connection.sock.close()

    def _readable(self, connection: Connection) -> None:
        if connection.unsent:  # registered for writing as well
            self._send(connection, b"")
            if connection.sock.fileno() < 0:
                return
        try:
            data = connection.sock.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.read += data
        while connection.sock.fileno() >= 0 and self._request(connection):
            pass
        if len(connection.read) > MAX_REQUEST and connection.sock.fileno() >= 0:
            self._close(connection)

    def _request(self, connection: Connection) -> bool:
        """Answer one complete request; False when more bytes are needed."""
        head, end, rest = connection.read.partition(b"\r\n\r\n")
        if not end:
            return False
        lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip().lower()
        length = int(headers.get("content-length", "0") or "0")
        if len(rest) < length:
            return False
        connection.read = rest[length:]
        words = lines[0].split(" ")
        target = words[1] if len(words) > 1 else "/"
        version = words[2] if len(words) > 2 else "HTTP/1.0"
        body = self._answer(*connection.client, "TCP", connection.port).encode()
        path, _, query = target.partition("?")
        if path == "/stream":
            interval = query.partition("interval=")[2].split("&")[0]
            connection.interval_s = float(interval or "0.5")
            connection.due = time.monotonic()
            self._streams.add(connection)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
            self._send(connection, head)
            return False
        keep = version == "HTTP/1.1" and headers.get("connection") != "close" and not self._ending
        connection.close_after = not keep
        self._send(
            connection,
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            b"Connection: %s\r\n\r\n%s"
            % (len(body), b"keep-alive" if keep else b"close", body if words[0] != "HEAD" else b""),
        )
        return keep

    def _stream_line(self, connection: Connection, now: float) -> None:
        connection.due = now + max(0.01, connection.interval_s)
        connection.lines += 1
        self._send(connection, self._answer(*connection.client, "TCP", connection.port).encode())

    def _send(self, connection: Connection, data: bytes) -> None:
        connection.unsent += data
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent and connection.close_after:
            # Everything is on its way; the client's FIN is not waited for.
            self._close(connection)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        self._selector.modify(connection.sock, events, (self._readable, connection))


def main() -> None:
    pod, namespace, node, *ports = sys.argv[1:]
    server = Server(pod, namespace, node)
    signal.signal(signal.SIGTERM, server.terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for port in dict.fromkeys(ports):
        number, _, protocol = port.partition("/")
        try:
            server.listen(int(number), protocol or "TCP")
        except (OSError, KeyError) as error:
            sys.exit(f"cannot serve {port}: {error}")
    print("ready", flush=True)
    server.run()


if __name__ == "__main__":
    main()

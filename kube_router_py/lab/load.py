"""A small load generator that says what it did: run inside a namespace, prints one JSON line.

    python3 -I -S load.py ADDRESS PORT [--protocol tcp|udp|sctp] [--count N] [--seconds S]
                          [--rate R] [--concurrency C] [--timeout S] [--minimum N]
                          [--stream INTERVAL]

Requests go out at ``--rate`` a second together, each on its own connection, until ``--count`` or
``--seconds`` is reached or SIGTERM arrives; there is always an end. After SIGTERM it still brings
the number of requests to ``--minimum``, at the same rate. ``--stream`` instead holds one
connection and counts the lines that arrive; it prints a first line with its own address at once.
The result: ``attempts, failures, errors, pods, clients, seconds, rate, concurrency``.
"""

import argparse
import json
import signal
import socket
import sys
import threading
import time
from typing import Any

MAX_COUNT = 1_000_000
MAX_SECONDS = 600.0
IPPROTO_SCTP = 132
REQUEST = b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"


def ask(address: str, port: int, protocol: str, timeout_s: float) -> dict[str, Any]:
    """One request on a new socket; raises OSError or ValueError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind, number = {
        "tcp": (socket.SOCK_STREAM, 0),
        "udp": (socket.SOCK_DGRAM, 0),
        "sctp": (socket.SOCK_STREAM, IPPROTO_SCTP),
    }[protocol]
    with socket.socket(family, kind, number) as sock:
        sock.settimeout(timeout_s)
        sock.connect((address, port))
        if protocol == "tcp":
            sock.sendall(REQUEST)
            answer = b""
            while data := sock.recv(65536):
                answer += data
            body = answer.partition(b"\r\n\r\n")[2]
        else:
            sock.send(b"?")
            body = sock.recv(65536)
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError(f"unexpected answer {body!r}")
    return found


class Load:
    """Workers share one schedule: the n-th request starts at n/rate."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._lock = threading.Lock()
        self._started = 0
        self._began = time.monotonic()
        self._attempts = 0
        self._errors: dict[str, int] = {}
        self._pods: dict[str, int] = {}
        self._clients: dict[str, int] = {}
        self._slowest_s = 0.0
        self.stop = threading.Event()

    def run(self) -> dict[str, Any]:
        workers = [
            threading.Thread(target=self._work, daemon=True)
            for _ in range(self._arguments.concurrency)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            # Waking up regularly lets the main thread see a signal.
            while worker.is_alive():
                worker.join(0.2)
        seconds = time.monotonic() - self._began
        return {
            "attempts": self._attempts,
            "failures": sum(self._errors.values()),
            "errors": self._errors,
            "pods": dict(sorted(self._pods.items())),
            "clients": dict(sorted(self._clients.items())),
            "seconds": round(seconds, 2),
            "rate": round(self._attempts / seconds, 1) if seconds else 0.0,
            "slowest_s": round(self._slowest_s, 3),
            "concurrency": self._arguments.concurrency,
        }

    def _is_over(self) -> bool:
        return self.stop.is_set() and self._started >= self._arguments.minimum

    def _next(self) -> float | None:
        """When the next request starts, in seconds since the start; None when it is over."""
        with self._lock:
            if self._is_over() or self._started >= self._arguments.count:
                return None
            start = self._started / self._arguments.rate if self._arguments.rate else 0.0
            if max(start, time.monotonic() - self._began) >= self._arguments.seconds:
                return None
            self._started += 1
            return start

    def _work(self) -> None:
        given = self._arguments
        while (start := self._next()) is not None:
            while (wait_s := start - (time.monotonic() - self._began)) > 0:
                if self.stop.is_set():
                    time.sleep(min(wait_s, 0.2))
                else:
                    self.stop.wait(wait_s)
            asked = time.monotonic()
            error, answer = "", {}
            try:
                answer = ask(given.address, given.port, given.protocol, given.timeout)
            except (OSError, ValueError) as failure:
                error = f"{type(failure).__name__}: {failure}"
            with self._lock:
                self._attempts += 1
                self._slowest_s = max(self._slowest_s, time.monotonic() - asked)
                if error:
                    self._errors[error] = self._errors.get(error, 0) + 1
                else:
                    pod, client = str(answer.get("pod")), str(answer.get("client"))
                    self._pods[pod] = self._pods.get(pod, 0) + 1
                    self._clients[client] = self._clients.get(client, 0) + 1


def stream(arguments: argparse.Namespace, stop: threading.Event) -> dict[str, Any]:
    """Hold one connection; ``failures`` is 1 if it broke or fell silent before its time."""
    family = socket.AF_INET6 if ":" in arguments.address else socket.AF_INET
    began = last = time.monotonic()
    lines, longest_gap_s, error, pods = 0, 0.0, "", set()
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(arguments.timeout)
        sock.connect((arguments.address, arguments.port))
        sock.sendall(
            f"GET /stream?interval={arguments.stream} HTTP/1.1\r\nHost: lab\r\n\r\n".encode()
        )
        file = sock.makefile("rb")
        while file.readline().strip():
            pass  # the header
        local = sock.getsockname()
        print(json.dumps({"local": local[0], "local_port": local[1]}), flush=True)
        while not stop.is_set() and time.monotonic() - began < arguments.seconds:
            try:
                line = file.readline()
            except OSError as failure:
                error = f"{type(failure).__name__}: {failure}"
                break
            if not line:
                error = "the server closed the connection"
                break
            now = time.monotonic()
            longest_gap_s, last = max(longest_gap_s, now - last), now
            lines += 1
            pods.add(str(json.loads(line).get("pod")))
    return {
        "lines": lines,
        "failures": 1 if error else 0,
        "error": error,
        "pods": sorted(pods),
        "longest_gap_s": round(longest_gap_s, 3),
        "seconds": round(time.monotonic() - began, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--protocol", choices=("tcp", "udp", "sctp"), default="tcp")
    parser.add_argument("--count", type=int, default=MAX_COUNT)
    parser.add_argument("--seconds", type=float, default=MAX_SECONDS)
    parser.add_argument("--rate", type=float, default=0.0, help="requests/s; 0: as fast as can be")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--minimum", type=int, default=0, metavar="N")
    parser.add_argument("--stream", type=float, default=0.0, metavar="INTERVAL")
    arguments = parser.parse_args()
    load = Load(arguments)
    signal.signal(signal.SIGTERM, lambda *_: load.stop.set())
    try:
        result = stream(arguments, load.stop) if arguments.stream else load.run()
    except OSError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

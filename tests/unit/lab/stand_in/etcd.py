"""Stands in for etcd: listens where etcd's flags say, and keeps a journal for its API server.

The two calls of etcd's JSON gateway that the lab makes are answered in etcd's form; ``/journal`` is
a private agreement with the other stand-in, in place of etcd's own protocol.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

parser = argparse.ArgumentParser(allow_abbrev=False)
for flag in (
    "data-dir",
    "listen-client-urls",
    "advertise-client-urls",
    "listen-peer-urls",
    "initial-advertise-peer-urls",
    "initial-cluster",
):
    parser.add_argument(f"--{flag}", required=True)
parser.add_argument("--unsafe-no-fsync", action="store_true")
given = parser.parse_args()

Path(given.data_dir).mkdir(mode=0o700)
journal: list[str] = []
compacted = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer({"health": "true"})
        elif self.path == "/journal":
            self.answer({"lines": journal, "compacted": compacted})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        global compacted
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v3/kv/range":
            self.answer({"header": {"revision": str(1 + len(journal))}})
        elif self.path == "/v3/kv/compaction":
            compacted = int(body["revision"])
            self.answer({"header": {}})
        elif self.path == "/journal":
            journal.append(body)
            self.answer({})
        else:
            self.send_error(404)


url = urlsplit(given.listen_client_urls)
ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer((url.hostname or "", url.port or 0), Handler).serve_forever()

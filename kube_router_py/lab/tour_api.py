"""The few API calls of the guided tour, so that it needs no kubectl."""

import base64
import json
import shutil
import ssl
import subprocess
from collections.abc import Mapping
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from kube_router_py.lab.errors import LabError

Object = dict[str, Any]
TIMEOUT_S = 60.0
COLLECTIONS = {
    "services": "/api/v1/namespaces/default/services",
    "endpointslices": "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
    "pods": "/api/v1/namespaces/default/pods",
    "deployments": "/apis/apps/v1/namespaces/default/deployments",
    "nodes": "/api/v1/nodes",
}
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


class Api:
    """Calls to the server of a kubeconfig, as its administrator."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._server = urlsplit(cluster["server"])
        self._token: str = config["users"][0]["user"]["token"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)

    def call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        accept: str = "application/json",
        content_type: str = "application/merge-patch+json",
    ) -> Object:
        """One request; raises LabError for an answer above 299."""
        connection = HTTPSConnection(
            self._server.hostname or "",
            self._server.port,
            context=self._context,
            timeout=TIMEOUT_S,
        )
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Accept": accept,
            "Content-Type": content_type,
        }
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            found = json.loads(answer.read())
        except (OSError, ValueError) as error:
            raise LabError(f"{method} {path}: {error}") from error
        finally:
            connection.close()
        if answer.status > 299:
            raise LabError(f"{method} {path}: {answer.status} {found.get('message')}")
        return dict(found)

    def list_all(self, kind: str, selector: str = "") -> list[Object]:
        query = f"?labelSelector={selector}" if selector else ""
        items: list[Object] = self.call("GET", COLLECTIONS[kind] + query)["items"]
        return items

    def get(self, kind: str, name: str) -> Object:
        return self.call("GET", f"{COLLECTIONS[kind]}/{name}")

    def create(self, kind: str, obj: Object) -> None:
        self.call("POST", COLLECTIONS[kind], obj, content_type="application/json")

    def scale(self, deployment: str, replicas: int) -> None:
        self.call(
            "PATCH", f"{COLLECTIONS['deployments']}/{deployment}", {"spec": {"replicas": replicas}}
        )

    def delete(self, kind: str, name: str) -> None:
        self.call("DELETE", f"{COLLECTIONS[kind]}/{name}")

    def show(self, kinds: list[str], environ: Mapping[str, str]) -> tuple[str, str]:
        """The command and what it prints: kubectl's own words, or the server's tables."""
        command = ["kubectl", "get", ",".join(kinds), "-o", "wide"]
        if shutil.which("kubectl"):
            done = subprocess.run(
                command, env=dict(environ), capture_output=True, text=True, timeout=TIMEOUT_S
            )
            if done.returncode != 0:
                raise LabError(f"kubectl get failed: {done.stderr.strip()}")
            return " ".join(command), done.stdout
        tables = [self.call("GET", COLLECTIONS[kind], accept=TABLE) for kind in kinds]
        text = "\n".join(render_table(table) for table in tables)
        return f"GET {', '.join(kinds)} (kubectl is not installed)", text


def render_table(table: Object) -> str:
    """A meta.k8s.io/v1 Table as aligned text, without its wide columns. Pure."""
    definitions = table["columnDefinitions"]
    shown = [number for number, column in enumerate(definitions) if not column.get("priority")]
    rows = [[str(definitions[number]["name"]).upper() for number in shown]]
    rows += [[str(row["cells"][number]) for number in shown] for row in table.get("rows") or []]
    widths = [max(len(row[number]) for row in rows) for number in range(len(shown))]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "".join(f"{line}\n" for line in lines)

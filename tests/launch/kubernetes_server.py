"""A stand-in for a cluster's API server: real kubectl talks to it over HTTP, and it keeps objects in memory.

It does what `vitscale launch gke` asks for: discovery, create, list by labels, delete, logs. No controller runs: tests
add the pods that one would make.
"""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

GROUPS = {
    "/api/v1": (("services", "Service"), ("pods", "Pod")),
    "/apis/batch/v1": (("jobs", "Job"),),
    "/apis/jobset.x-k8s.io/v1alpha2": (("jobsets", "JobSet"),),
}
KINDS = {name: kind for group in GROUPS.values() for name, kind in group}
_OBJECTS = re.compile(r"(/apis?/.*)/namespaces/([^/]+)/([^/]+)(?:/([^/]+))?(/log)?")


class Cluster:
    """What there is, and what was asked."""

    def __init__(self, url: str, jobset: bool) -> None:
        self.url = url
        self.groups = {g: r for g, r in GROUPS.items() if jobset or "jobset" not in g}
        self.objects: dict[
            tuple[str, str], dict
        ] = {}  # (kinds, name) → object, of namespace default
        self.requests: list[tuple[str, str]] = []
        self.saving = False  # pods do: what is deleted stays until it is let go
        self.trouble: tuple[int, str, str] | None = (
            None  # (code, reason, message) to all about objects
        )
        self.logs: dict[str, str] = {}

    def add(self, kinds: str, name: str, labels: dict[str, str], **parts) -> None:
        metadata = {"name": name, "namespace": "default", "labels": labels}
        self.objects[kinds, name] = {**self._head(kinds), "metadata": metadata, **parts}

    def let_go(self) -> None:
        """Pods have saved: what was deleted is gone."""
        for key, thing in list(self.objects.items()):
            if "deletionTimestamp" in thing["metadata"]:
                del self.objects[key]

    def names(self) -> list[str]:
        return sorted("/".join(key) for key in self.objects)

    def answer(self, method: str, url: str, body: dict | None) -> tuple[int, object]:
        self.requests.append((method, url))
        parts = urlsplit(url)
        path, query = parts.path, parse_qs(parts.query)
        if found := _OBJECTS.fullmatch(path):
            if self.trouble:
                return self._failure(*self.trouble)
            return self._objects(method, found[3], found[4], found[5], query, body)
        if path == "/version":
            return 200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            versions = [g.removeprefix("/apis/") for g in self.groups if g != "/api/v1"]
            groups = []
            for version in versions:
                entry = {"groupVersion": version, "version": version.partition("/")[2]}
                groups.append(
                    {
                        "name": version.partition("/")[0],
                        "versions": [entry],
                        "preferredVersion": entry,
                    }
                )
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if path in self.groups:
            resources = [
                {
                    "name": name,
                    "singularName": kind.lower(),
                    "namespaced": True,
                    "kind": kind,
                    "verbs": ["create", "delete", "get", "list"],
                }
                for name, kind in self.groups[path]
            ]
            version = path.removeprefix("/apis/").removeprefix("/api/")
            return 200, {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": version,
                "resources": resources,
            }
        if path == "/openapi/v3":
            links = {g.lstrip("/"): {"serverRelativeURL": f"/openapi/v3{g}"} for g in self.groups}
            return 200, {"paths": links}
        if path.startswith("/openapi/v3/"):
            return 200, self._openapi(path.removeprefix("/openapi/v3"))
        if path == "/openapi/v2":
            return 200, ""  # as a protocol buffer: a document in which nothing is set
        return self._failure(404, "NotFound", f"nothing at {path}")

    def _openapi(self, group: str) -> dict:
        """Enough for kubectl to leave the validation of fields to the server."""
        parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
        *name, version = group.removeprefix("/apis/").removeprefix("/api/").split("/")
        paths = {}
        for resource, kind in self.groups[group]:
            of = {"group": "/".join(name), "version": version, "kind": kind}
            patch = {"parameters": [parameter], "x-kubernetes-group-version-kind": of}
            url = f"{group}/namespaces/{{namespace}}/{resource}/{{name}}"
            paths[url] = {"patch": {**patch, "responses": {}}}
        return {"openapi": "3.0.0", "info": {"title": "x", "version": "1"}, "paths": paths}

    def _objects(self, method, kinds, name, log, query, body):
        if method == "POST":
            name = body["metadata"]["name"]
            if (kinds, name) in self.objects:
                message = f'{kinds} "{name}" already exists'
                return self._failure(409, "AlreadyExists", message)
            body["metadata"]["namespace"] = "default"
            self.objects[kinds, name] = body
            return 201, body
        if name is None:
            wanted = dict(
                pair.split("=", 1)
                for pair in query.get("labelSelector", [""])[0].split(",")
                if pair
            )
            found = [
                thing
                for (kind, _), thing in self.objects.items()
                if kind == kinds and wanted.items() <= thing["metadata"]["labels"].items()
            ]
            return 200, {**self._head(kinds, "List"), "metadata": {}, "items": found}
        if (kinds, name) not in self.objects:
            return self._failure(404, "NotFound", f'{kinds} "{name}" not found')
        if log:
            return 200, self.logs.get(name, "")
        if method == "DELETE" and self.saving:
            self.objects[kinds, name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        elif method == "DELETE":
            return 200, self.objects.pop((kinds, name))
        return 200, self.objects[kinds, name]

    @staticmethod
    def _head(kinds: str, suffix: str = "") -> dict[str, str]:
        group = next(g for g, resources in GROUPS.items() if kinds in dict(resources))
        version = group.removeprefix("/apis/").removeprefix("/api/")
        return {"apiVersion": version, "kind": KINDS[kinds] + suffix}

    @staticmethod
    def _failure(code: int, reason: str, message: str) -> tuple[int, dict]:
        return code, {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": reason,
            "message": message,
            "code": code,
        }

    def kubeconfig(self) -> str:
        """Two contexts for the same server."""
        contexts = [
            {"name": name, "context": {"cluster": "here", "user": "me"}} for name in ("here", "too")
        ]
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": self.url}}],
                "users": [{"name": "me", "user": {}}],
                "contexts": contexts,
            }
        )


@contextmanager
def cluster(*, jobset: bool = True):
    """A running server."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(length)
            code, answer = here.answer(self.command, self.path, json.loads(data or "null"))
            text = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(code)
            kind = "text/plain" if isinstance(answer, str) else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_DELETE = _do

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Cluster(f"http://127.0.0.1:{server.server_address[1]}", jobset)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()

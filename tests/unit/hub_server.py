"""A hub for tests: the few routes of the Hugging Face Hub that its library asks, on 127.0.0.1.

GET  /api/{models,datasets}/OWNER/NAME[/revision/REVISION]      the commit
GET  /api/{models,datasets}/OWNER/NAME/tree/COMMIT              the files
HEAD, GET  [/datasets]/OWNER/NAME/resolve/COMMIT/PATH           a file
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["TOKEN", "FakeHub"]

TOKEN = "hf_secret-that-nobody-may-see"


@dataclass
class FakeRepository:
    """Commits by name of branch or tag, and the files of each commit."""

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    access: str = "open"


class FakeHub:
    """The server; `address` is what HF_ENDPOINT has to be."""

    def __init__(self) -> None:
        self.repositories: dict[str, FakeRepository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and authorization of each."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answer(hub, self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def push(
        self, name: str, files: Mapping[str, bytes] | Path, *, revision: str = "main", access: str = "open"
    ) -> str:
        """Make a commit of `datasets/OWNER/NAME` or `models/OWNER/NAME`; returns its id."""
        if isinstance(files, Path):
            files = {
                str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()
            }
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        repository = self.repositories.setdefault(name, FakeRepository())
        repository.revisions[revision] = commit
        repository.commits[commit] = dict(files)
        repository.access = access
        return commit

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def answer(hub: FakeHub, request: BaseHTTPRequestHandler) -> None:
    """Answer one request, as the Hub does."""
    path = unquote(urlsplit(request.path).path).strip("/")
    hub.requests.append((request.command, path, request.headers.get("authorization")))
    is_api = path.startswith("api/")
    parts = path.removeprefix("api/").split("/")
    if not is_api and parts[0] != "datasets":
        parts.insert(0, "models")
    repository = hub.repositories.get("/".join(parts[:3]))
    allowed = request.headers.get("authorization") == f"Bearer {TOKEN}"
    if repository is None or (repository.access == "private" and not allowed):
        return send(request, 404 if allowed else 401, error="RepoNotFound")
    if repository.access == "broken":
        return send(request, 500)
    verb, rest = (parts[3], parts[4:]) if parts[3:] else ("revision", ["main"])
    if repository.access == "gated" and verb != "revision" and not allowed:
        return send(request, 401 if request.headers.get("authorization") is None else 403, error="GatedRepo")
    taken = next((n for n in range(len(rest), 0, -1) if known(repository, "/".join(rest[:n]))), 0)
    if not taken:
        return send(request, 404, error="RevisionNotFound")
    name = "/".join(rest[:taken])
    commit = repository.revisions.get(name, name)
    files = repository.commits[commit]
    if verb == "revision":
        return send(
            request, 200, json.dumps({"id": "/".join(parts[1:3]), "sha": commit, "siblings": []}).encode()
        )
    if verb == "tree":
        tree = [
            {"type": "file", "oid": etag(data), "size": len(data), "path": path}
            for path, data in files.items()
        ]
        return send(request, 200, json.dumps(tree).encode())
    data = files.get("/".join(rest[taken:]))
    if data is None:
        return send(request, 404, error="EntryNotFound")
    return send(request, 200, data, {"ETag": f'"{etag(data)}"', "X-Repo-Commit": commit})


def known(repository: FakeRepository, revision: str) -> bool:
    return revision in repository.revisions or revision in repository.commits


def etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def send(
    request: BaseHTTPRequestHandler,
    status: int,
    data: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    error: str | None = None,
) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    if error:
        request.send_header("X-Error-Code", error)
    request.send_header(
        "Content-Type", "application/json" if data[:1] in (b"{", b"[") else "binary/octet-stream"
    )
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)

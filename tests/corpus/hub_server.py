"""A hub on 127.0.0.1: repo info, tree, HEAD/GET resolve with ETag and X-Repo-Commit, CDN redirect, ranges."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FakeHub:
    """What is published, what goes wrong, and what was asked for."""

    repo_id: str
    files: dict[str, bytes]
    endpoint: str = ""
    fail_after: dict[str, int] = field(default_factory=dict)  # path -> bytes until the line drops, then 503
    corrupt: set[str] = field(default_factory=set)  # paths whose bytes arrive changed
    gets: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range) of content requests

    def is_large(self, path: str) -> bool:
        return not path.endswith(".json")

    def etag(self, path: str) -> str:
        raw = self.files[path]
        if self.is_large(path):
            return hashlib.sha256(raw).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()

    def tree(self, folder: str) -> list[dict[str, object]] | None:
        entries: list[dict[str, object]] = []
        for path, raw in sorted(self.files.items()):
            if path.rpartition("/")[0] != folder:
                continue
            entry: dict[str, object] = {"type": "file", "path": path, "size": len(raw), "oid": "0" * 40}
            if self.is_large(path):
                entry["lfs"] = {"oid": self.etag(path), "size": len(raw), "pointerSize": 134}
            else:
                entry["oid"] = self.etag(path)
            entries.append(entry)
        return entries or None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        repo = re.escape(self.hub.repo_id)
        if re.fullmatch(rf"/api/datasets/{repo}/revision/(main|{COMMIT})", path):
            self._json({"id": self.hub.repo_id, "sha": COMMIT, "siblings": [], "private": False, "tags": []})
        elif match := re.fullmatch(rf"/api/datasets/{repo}/tree/{COMMIT}/(.+)", path):
            tree = self.hub.tree(match[1])
            self._json(tree) if tree is not None else self._error(404, "EntryNotFound")
        elif match := re.fullmatch(rf"/datasets/{repo}/resolve/{COMMIT}/(.+)", path):
            self._resolve(match[1], body=body)
        elif path.startswith("/cdn/"):
            self._content(path.removeprefix("/cdn/"), body=body)
        else:
            self._error(404, "RepoNotFound")

    def _resolve(self, path: str, *, body: bool) -> None:
        if path not in self.hub.files:
            self._error(404, "EntryNotFound")
        elif self.hub.is_large(path):
            self.send_response(302)
            self.send_header("Location", f"/cdn/{path}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-ETag", f'"{self.hub.etag(path)}"')
            self.send_header("X-Linked-Size", str(len(self.hub.files[path])))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._content(path, body=body)

    def _content(self, path: str, *, body: bool) -> None:
        raw, wanted = self.hub.files[path], self.headers.get("Range")
        if body:
            self.hub.gets.append((path, wanted))
        if path in self.hub.corrupt:
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        limit = self.hub.fail_after.get(path)
        if limit is not None and start >= limit:
            self._error(503, "")
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
        self.send_header("ETag", f'"{self.hub.etag(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(raw) - start))
        self.end_headers()
        if body:
            self.wfile.write(raw[start:limit])
            self.close_connection = self.close_connection or limit is not None

    def _json(self, content: object) -> None:
        raw = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve it on a free port of 127.0.0.1 until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()

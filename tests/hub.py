"""A small server on 127.0.0.1 that speaks the Hugging Face Hub's protocol."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40  # the one commit of every repository


class Hub:
    """Serves `files`, {(repo type, repo): {path: bytes}}, at `url` between `start` and `stop`.

    `requests` lists what was asked for. Files in `cut_short` end in the middle, as when a connection breaks.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.cut_short: set[str] = set()
        self.requests: list[str] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve; the port is the same each time."""
        if self._server is None:
            self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
            self._port = self._server.server_port
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse every connection."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                hub.requests.append(format % args)

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                if api := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)/(revision|tree)/[^/]+", path):
                    kind, repo, what = api.groups()
                    self.listing(hub.files.get((kind, repo)), repo, what)
                elif resolve := re.fullmatch(r"/(spaces/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                    kind, repo, file = resolve.groups()
                    self.file(hub.files.get(("space" if kind else "model", repo)), file)
                else:
                    self.answer(404, b"")

            def listing(self, files: dict[str, bytes] | None, repo: str, what: str) -> None:
                if files is None:
                    self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
                elif what == "revision":
                    siblings = [{"rfilename": name} for name in files]
                    self.answer(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
                else:
                    tree = [
                        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in files.items()
                    ]
                    self.answer(200, json.dumps(tree).encode())

            def file(self, files: dict[str, bytes] | None, name: str) -> None:
                if files is None or name not in files:
                    code = "RepoNotFound" if files is None else "EntryNotFound"
                    self.answer(404, b"", {"X-Error-Code": code})
                    return
                content = files[name]
                headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                self.answer(200, content, headers, cut=name in hub.cut_short)

            def answer(
                self, status: int, content: bytes, headers: dict[str, str] | None = None, cut: bool = False
            ) -> None:
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content[: len(content) // 2] if cut else content)

        return Handler

"""A small server on 127.0.0.1 that speaks the Hugging Face Hub's protocol, and serves Google Drive's links beside."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40  # the one commit of every repository


class Hub:
    """Serves `files`, {(repo type, repo): {path: bytes}}, at `url` between `start` and `stop`, and takes uploads.

    `drive` is {id: bytes}, at `drive_url`. `requests` lists what was asked for. By file name, or id: those in
    `cut_short` end in the middle, as when a connection breaks; those in `stalling` stop there, and the connection stays
    open; those in `hanging` never answer, nor do listings of the repositories in it; `refused` gives a status and an
    ``X-Error-Code`` instead; `etags` replaces the hash of the content.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.drive: dict[str, bytes] = {}
        self.cut_short: set[str] = set()
        self.stalling: set[str] = set()
        self.hanging: set[str] = set()
        self.refused: dict[str, tuple[int, str]] = {}
        self.etags: dict[str, str] = {}
        self.requests: list[str] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self._released = threading.Event()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def drive_url(self) -> str:
        return f"{self.url}/drive?id="

    def start(self) -> None:
        """Serve; the port is the same each time."""
        if self._server is None:
            self._released.clear()
            self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
            self._port = self._server.server_port
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse every connection."""
        self._released.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def clear(self) -> None:
        """Up, and with nothing on it."""
        self.stop()
        self.start()
        for state in (self.files, self.drive, self.cut_short, self.stalling, self.hanging, self.refused, self.etags):
            state.clear()
        self.requests.clear()

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
                elif path == "/drive":
                    self.file(hub.drive, parse_qs(urlsplit(self.path).query)["id"][0])
                else:
                    self.answer(404, b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                lines = [json.loads(line) for line in body.splitlines() if line.strip()]
                path = unquote(urlsplit(self.path).path)
                if path == "/api/repos/create":
                    repo = "/".join(filter(None, (lines[0].get("organization"), lines[0]["name"])))
                    hub.files.setdefault(("model", repo), {})
                    self.json({"url": f"{hub.url}/{repo}"})
                elif path == "/api/validate-yaml":
                    self.json({"errors": [], "warnings": []})
                elif preupload := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
                    names = [file["path"] for file in lines[0]["files"]]
                    modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                    self.json({"files": modes} if hub.files.get(("model", preupload[1])) is not None else {})
                elif commit := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                    for line in lines:
                        if line["key"] == "file":
                            content = base64.b64decode(line["value"]["content"])
                            hub.files["model", commit[1]][line["value"]["path"]] = content
                    self.json(
                        {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{commit[1]}/commit/{COMMIT}"}
                    )
                else:
                    self.answer(404, b"")

            def listing(self, files: dict[str, bytes] | None, repo: str, what: str) -> None:
                if repo in hub.hanging:
                    self.hang()
                elif files is None:
                    self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
                elif what == "revision":
                    self.json({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
                else:
                    tree = [
                        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in files.items()
                    ]
                    self.json(tree)

            def file(self, files: dict[str, bytes] | None, name: str) -> None:
                if name in hub.hanging:
                    self.hang()
                    return
                if name in hub.refused:
                    status, code = hub.refused[name]
                    self.answer(status, b"", {"X-Error-Code": code})
                elif files is None or name not in files:
                    self.answer(404, b"", {"X-Error-Code": "RepoNotFound" if files is None else "EntryNotFound"})
                else:
                    content = files[name]
                    etag = hub.etags.get(name, hashlib.sha1(content).hexdigest())
                    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
                    end = len(content) // 2 if name in hub.cut_short | hub.stalling else len(content)
                    self.answer(200, content, headers, end, name in hub.stalling)

            def hang(self) -> None:
                hub.requests.append(f"hanging: {self.requestline}")
                hub._released.wait(60)

            def json(self, content: object) -> None:
                self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

            def answer(
                self,
                status: int,
                content: bytes,
                headers: dict[str, str] | None = None,
                end: int | None = None,
                stall: bool = False,
            ) -> None:
                """`content` up to `end`, from where the client says that it has the rest."""
                start = 0
                if status == 200 and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
                    status, start = 206, int(asked[1])
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[start:end])
                    if stall:
                        self.hang()

        return Handler

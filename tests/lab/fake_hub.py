"""The part of huggingface.co that takes a model, as a server on this machine: what arrives is kept."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub(ThreadingHTTPServer):
    """Requests, and files by their path, as they arrive."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.status: dict[str, int] = {}
        """What to answer to a request whose path has this in it, other than 200."""
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.files: dict[str, bytes] = {}
        self.uploaded: dict[str, bytes] = {}
        """Large files by their SHA-256, which the commit names."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer({"error": "no such model"}, 404)

    def do_PUT(self) -> None:
        self.server.uploaded[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        hub, body = self.server, self._body()
        if "/large/" not in self.path:
            hub.tokens.add(self.headers["Authorization"])
        for part, status in hub.status.items():
            if part in self.path:
                self._answer({"error": "refused"}, status)
                return
        if self.path.endswith("/repos/create"):
            hub.created.append(json.loads(body))
            self._answer({"url": f"{hub.address}/me/{hub.created[-1]['name']}"})
        elif "/preupload/" in self.path:
            self._answer({"files": [self._mode(file) for file in json.loads(body)["files"]]})
        elif self.path.endswith("/objects/batch"):
            self._answer({"objects": [self._place(each) for each in json.loads(body)["objects"]]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                self._keep(**line)
            self._answer({"commitUrl": f"{hub.address}/me/x/commit/1", "commitOid": "1"})
        else:  # checks of the card
            self._answer({"errors": [], "warnings": []})

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        is_large = file["path"].endswith(".safetensors")
        return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.server.address}/large/{asked['oid']}"}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": upload}}

    def _keep(self, key: str, value: dict[str, Any]) -> None:
        if key == "file":
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            self.server.files[value["path"]] = self.server.uploaded[value["oid"]]

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve until the end of the block."""
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()

"""A W&B service on this machine that takes what a run sends, until it fails in one of several ways."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import lightning as L

MOMENTS = {
    "at start": lambda path, body: True,
    "early": lambda path, body: path.endswith("/file_stream"),  # the run is open; none of its rows have been sent
    "in the middle": lambda path, body: path.startswith("/upload/media/"),
    "at the end": lambda path, body: b"CreateRunFiles" in body and b"wandb-summary.json" in body,  # all is logged
}
"""When a service fails: at the first request that is true of."""

FAILURES = ("hangs", "refuses", "answers 500", "answers 403")
"""How: it takes a request and never answers; it is gone; it says that it, or the user, is at fault."""


class FakeWandb:
    """Answers as W&B's service does, as far as wandb-core asks, and keeps what it is sent.

    Attributes:
        url: for WANDB_BASE_URL.
        history: rows that were sent, by their place.
        files: contents by path.
        is_complete: whether the run has said that it is over.
    """

    def __init__(self, failure: str | None = None, moment: str = "at start", trace: Path | None = None) -> None:
        """It works for ever if failure is None; `trace` is a file that appears when it fails."""
        self.failure, self.fails_at, self.trace = failure, MOMENTS[moment], trace
        self.failed, self._over = threading.Event(), threading.Event()
        self.history: dict[int, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.is_complete = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeWandb:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.close()

    def close(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> tuple[int, object] | None:
        """The status and JSON to answer with; None ends the connection without."""
        if self.failure and (self.failed.is_set() or self.fails_at(path, body)):
            return self._fail(self.failure)
        if path.startswith("/graphql"):
            asked = json.loads(body)
            return 200, {"data": self._graphql(asked["operationName"], asked.get("variables") or {})}
        if path.startswith("/upload/"):
            self.files[path.removeprefix("/upload/")] = body
        elif path.endswith("/file_stream"):
            sent = json.loads(body)
            rows = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            self.history |= {rows["offset"] + i: json.loads(row) for i, row in enumerate(rows["content"])}
            self.is_complete |= bool(sent.get("complete"))
        return 200, {}

    def _fail(self, failure: str) -> tuple[int, object] | None:
        self.failed.set()
        if self.trace is not None:
            self.trace.touch()
        if failure.startswith("answers"):
            return int(failure.split()[1]), {}
        if failure == "hangs":
            self._over.wait()
        else:
            self.close()
        return None

    def _graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "1", "name": "minigpt", "entity": {"id": "1", "name": "somebody"}}
        match operation:
            case "UpsertBucket":
                name = variables["name"]
                return {"upsertBucket": {"bucket": {"id": name, "name": name, "displayName": name, "project": project}}}
            case "RunResumeStatus" if self.history:
                return {"model": project | {"bucket": self._resumed(variables["name"])}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
        return {}  # which to others means: nothing there

    def _resumed(self, name: str) -> dict[str, Any]:
        """What the service has of a run, for a part that goes on with it."""
        tail = json.dumps([json.dumps(self.history[max(self.history)])])
        counts = dict.fromkeys(("logLineCount", "eventsLineCount"), 0) | {"historyLineCount": len(self.history)}
        empty = {
            "summaryMetrics": "{}",
            "config": "{}",
            "eventsTail": "[]",
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"id": name, "name": name, "displayName": name, "historyTail": tail, **counts, **empty}


def _handler(service: FakeWandb) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = zlib.decompress(body, wbits=31)
            answer = service.answer(self.path, body)
            if answer is None:
                self.close_connection = True
                return
            content = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_PUT(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            """Nothing on the screen."""

    return Handler


class PauseUntil(L.Callback):
    """Training that stands still at a step until a file appears, so that what happens outside happens in the middle."""

    def __init__(self, step: int, file: str) -> None:
        self.step, self.file = step, Path(file)

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        while trainer.global_step == self.step and not self.file.exists():
            time.sleep(0.05)

"""A server on this machine in place of the ones that hold released weights."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Behaviour:
    """What the server holds, and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    drop_after: list[int] = field(default_factory=list)  # bytes of each answer in turn
    statuses: list[int] = field(default_factory=list)  # of each answer in turn
    ranges: bool = True
    length_error: int = 0
    etag: str = '"1"'
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    address: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        how, name = self.server.behaviour, self.path.lstrip("/")
        wanted = self.headers.get("Range")
        how.requests.append((name, wanted))
        if how.statuses and (status := how.statuses.pop(0)) != 200:
            return self.send_error(status)
        if name not in how.files:
            return self.send_error(404)
        data, start = how.files[name], 0
        fits = self.headers.get("If-Range") in (None, how.etag)
        if wanted and how.ranges and fits:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start + how.length_error))
        self.send_header("ETag", how.etag)
        self.end_headers()
        count = how.drop_after.pop(0) if how.drop_after else len(data)
        self.wfile.write(data[start : start + count])

    def log_message(self, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    behaviour: Behaviour


@pytest.fixture
def server() -> Iterator[Behaviour]:
    with _Server(("127.0.0.1", 0), _Handler) as running:
        host, port = running.server_address[:2]
        running.behaviour = Behaviour(address=f"http://{host}:{port}")
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running.behaviour
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own for every test, and no way to the network."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FRANCA_FAST_CACHE", str(folder))
    monkeypatch.setenv("FRANCA_FAST_MIRROR", "http://127.0.0.1:1")
    monkeypatch.setattr("franca_fast.hub.download._PAUSE_S", 0.0)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return folder

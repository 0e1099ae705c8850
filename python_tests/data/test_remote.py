from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from franca_fast.data import CropSettings, MaskSettings, TrainLoader, build_train_loader
from franca_fast.data.remote import RemoteShard
from franca_fast.data.samples import read_sample
from franca_fast.data.sources import open_source
from franca_fast.errors import InputError
from python_tests.data.files import tar_bytes, write_shards

MEMBERS = [("a.jpg", b"first"), ("a.cls", b"4"), ("b.jpg", b"second"), ("b.json", b'{"label": 2}')]
EXPECTED = [("a.jpg", b"first", 4), ("b.jpg", b"second", 2)]
TAR = tar_bytes(MEMBERS)


def contents(shard: RemoteShard) -> list[tuple[str, bytes, int | None]]:
    index = shard.index()
    refs = [index.ref(i) for i in range(len(index))]
    return [(ref.name, read_sample(ref), index.label(i)) for i, ref in enumerate(refs)]


def command(text: str) -> RemoteShard:
    return RemoteShard(f"pipe:{text}", allow_pipe=True)


class Server(ThreadingHTTPServer):
    """Serves `files`, path -> (stated length or None, bytes); a longer length breaks off."""

    files: dict[str, tuple[int | None, bytes]]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path not in self.server.files:
            self.send_error(404)
            return
        length, body = self.server.files[self.path]
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Answer) as server:
        server.files = {}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for aws and gsutil; the folder has their arguments and what they read."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("aws", "gsutil"):
        (folder / name).write_text(
            f'#!/bin/sh\ncd "{folder}"\nprintf "%s\\n" {name} "$@" > arguments\n'
            "cat object\nexit $(cat status)\n"
        )
        (folder / name).chmod(0o755)
    (folder / "object").write_bytes(TAR)
    (folder / "status").write_text("0")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_a_command_gives_a_tar_compressed_or_not(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(TAR)
    assert contents(command(f"cat {path}")) == EXPECTED
    assert contents(command(f"gzip -c {path}")) == EXPECTED


def test_a_failing_command_is_damage(tmp_path: Path) -> None:
    damage = command("exit 3").index().damage
    assert damage and damage.reason == "unreadable shard" and "ended with 3" in damage.detail


@pytest.mark.parametrize("status", [1, 23, 141])
def test_what_came_before_a_failure_is_kept(tmp_path: Path, status: int) -> None:
    (tmp_path / "s.tar").write_bytes(TAR)
    index = command(f"head -c 1024 {tmp_path}/s.tar; exit {status}").index()
    assert [index.ref(i).name for i in range(len(index))] == ["a.jpg"]
    assert index.damage and index.damage.reason == "damaged shard"
    assert f"ended with {status}" in index.damage.detail


def test_a_command_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("franca_fast.data.shards.MAX_SHARD_BYTES_IN_MEMORY", 1 << 20)
    damage = command("cat /dev/zero").index().damage
    assert damage and "more than 1 MiB" in damage.detail


@pytest.mark.parametrize("length", [len(TAR), None])
def test_a_shard_over_http(server: Server, length: int | None) -> None:
    server.files["/a.tar?key=1"] = (length, TAR)
    assert contents(RemoteShard(server.url("/a.tar?key=1"))) == EXPECTED
    server.files["/a.tgz"] = (None, gzip.compress(TAR))
    assert contents(RemoteShard(server.url("/a.tgz"))) == EXPECTED


def test_what_is_not_there_is_damage(server: Server) -> None:
    damage = RemoteShard(server.url("/gone.tar")).index().damage
    assert damage and damage.reason == "unreadable shard" and "curl ended with 22" in damage.detail
    assert damage.location == server.url("/gone.tar")


@pytest.mark.parametrize(
    ("length", "sent", "kept", "problem"),
    [
        (len(TAR), 1024, 1, "curl ended with 18"),  # between two members
        (len(TAR), 2100, 1, "curl ended with 18"),
        (None, 1024, 1, "breaks off"),
        (None, 2048, 1, "breaks off"),
        (None, 2100, 1, "breaks off"),
        (None, 3072, 2, "breaks off"),
    ],
)
def test_a_connection_that_breaks_is_damage(
    server: Server, length: int | None, sent: int, kept: int, problem: str
) -> None:
    server.files["/a.tar"] = (length, TAR[:sent])
    index = RemoteShard(server.url("/a.tar")).index()
    assert len(index) == kept
    assert index.damage and index.damage.reason == "damaged shard"
    assert problem in index.damage.detail


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("s3://bucket/a/b.tar", ["aws", "s3", "cp", "s3://bucket/a/b.tar", "-"]),
        ("gs://bucket/a/b.tar", ["gsutil", "cat", "gs://bucket/a/b.tar"]),
        ("s3://b/;touch>pwned;.tar", ["aws", "s3", "cp", "s3://b/;touch>pwned;.tar", "-"]),
        ("gs://b/`touch>pwned`.tar", ["gsutil", "cat", "gs://b/`touch>pwned`.tar"]),
        ("gs://b/$(touch>pwned).tar", ["gsutil", "cat", "gs://b/$(touch>pwned).tar"]),
    ],
)
def test_object_stores_are_read_by_their_programs(
    programs: Path, url: str, arguments: list[str]
) -> None:
    [shard] = open_source(url).shards
    assert isinstance(shard, RemoteShard) and contents(shard) == EXPECTED
    assert (programs / "arguments").read_text().splitlines() == arguments
    assert not list(programs.glob("*pwned*"))


def test_a_failing_program_is_damage(programs: Path) -> None:
    (programs / "status").write_text("5")
    damage = RemoteShard("s3://bucket/a.tar").index().damage
    assert damage and "aws ended with 5" in damage.detail


def test_a_program_that_is_not_installed_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="'gsutil', which reads gs://, is not installed"):
        open_source("gs://bucket/{0..3}.tar")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://host/a b.tar",
            "http://host/a\n.tar",
            "http://host/*.tar",
            "http://host/[0-9].tar",
        ),
        *("s3://bucket/*.tar", "gs://bucket/a?.tar", "s3://bucket/{a}.tar", "http://host/\0.tar"),
        *("http://host/';touch${IFS}pwned;'.tar", "s3://bucket/';touch>pwned;'.tar"),
    ],
)
def test_urls_that_mean_several_or_nothing_are_refused(programs: Path, url: str) -> None:
    with pytest.raises(InputError, match="accepted: URLs without"):
        open_source(url)


@pytest.mark.parametrize("scheme", ["hdfs", "file", "PIPE", "ftp", "htgs"])
def test_other_kinds_of_urls_are_refused(scheme: str) -> None:
    with pytest.raises(InputError, match="accepted: local paths, http://"):
        open_source(f"{scheme}://host/a.tar")


@pytest.mark.parametrize("spec", ["pipe:echo", "s3://b/a.tar::pipe:echo", "{/x.tar,pipe:echo}"])
def test_no_list_of_shards_smuggles_a_command_in(programs: Path, spec: str) -> None:
    with pytest.raises(InputError, match="commands with allow_pipe=True only"):
        open_source(spec)


def build(path: str) -> TrainLoader:
    return build_train_loader(
        path,
        batch_size=4,
        crops=CropSettings(global_crops_size=16, local_crops_size=8, local_crops_number=1),
        masking=MaskSettings(),
        patch_size=4,
        shuffle_buffer=10,
    )


def test_training_over_http_is_training_on_the_files_and_resumes_exactly(
    server: Server, tmp_path: Path
) -> None:
    pattern = write_shards(tmp_path, 5, 5)
    for path in tmp_path.glob("*.tar"):
        server.files[f"/{path.name}"] = (None, path.read_bytes())
    whole = server.files["/s-3.tar"][1]
    (tmp_path / "s-3.tar").write_bytes(whole[: len(whole) // 2])
    server.files["/s-3.tar"] = (len(whole), whole[: len(whole) // 2])
    url = server.url("/s-{0..4}.tar")
    with build(pattern) as local, build(url) as remote:
        batches, states = [], []
        for _ in range(12):
            states.append(json.dumps(remote.state_dict()))
            batches.append(next(remote))
            expected = next(local)
            assert batches[-1].keys == expected.keys
            assert batches[-1].global_crops.equal(expected.global_crops)
        assert remote.skipped == local.skipped and remote.skipped["damaged shard"] >= 2
    with build(url) as again:
        for step in (7, 3):
            again.load_state_dict(json.loads(states[step]))
            for batch in batches[step : step + 4]:
                found = next(again)
                assert found.keys == batch.keys and found.masks.equal(batch.masks)
                assert found.global_crops.equal(batch.global_crops)

from __future__ import annotations

import ast
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import franca_fast.data
from franca_fast.data import Batch, CropSettings, MaskSettings, TrainLoader, build_train_loader
from franca_fast.data.batch import BatchMaker
from franca_fast.errors import FrancaError, InputError
from python_tests.data.files import png, tar_bytes, write_folder, write_shards

CROPS = CropSettings(global_crops_size=16, local_crops_size=8, local_crops_number=2)


def build(path: str | Path, **options: Any) -> TrainLoader:
    settings = {"batch_size": 4, "crops": CROPS, "masking": MaskSettings(), "patch_size": 4}
    return build_train_loader(path, **{**settings, **options})


def workers_since(before: list[Any]) -> list[Any]:
    return [child for child in multiprocessing.active_children() if child not in before]


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Five shards of 5 images, two of them damaged."""
    pattern = write_shards(tmp_path, 5, 5)
    members = [(f"{i:04d}.png", png(i)[: 40 if i == 6 else None]) for i in range(5, 10)]
    (tmp_path / "s-1.tar").write_bytes(tar_bytes(members))
    whole = (tmp_path / "s-3.tar").read_bytes()
    (tmp_path / "s-3.tar").write_bytes(whole[: len(whole) // 2])
    return pattern


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact_at_any_point(shards: str, workers: int) -> None:
    # Batches of 4 from windows of two shards: the points lie in and between windows and epochs.
    options: dict[str, Any] = {"num_workers": workers, "shuffle_buffer": 10, "seed": 3}
    with build(shards, **options) as loader:
        states, batches = [loader.state_dict()], []
        for _ in range(24):
            batches.append(next(loader))
            states.append(loader.state_dict())
    assert states[-1]["position"]["epoch"] >= 3
    with build(shards, **options) as loader:
        for start in [0, 1, 4, 5, 9, 16, 21] if workers == 0 else [3, 11]:
            loader.load_state_dict(json.loads(json.dumps(states[start])))
            for step in range(start, min(start + 4, 24)):
                assert same(next(loader), batches[step])
                assert loader.state_dict() == states[step + 1]


def test_batches_do_not_depend_on_the_number_of_workers(shards: str) -> None:
    with build(shards) as none, build(shards, num_workers=2) as two:
        for _ in range(12):
            assert same(next(none), next(two))
            assert none.state_dict() == two.state_dict()


def test_the_seed_decides_everything(shards: str) -> None:
    one, again, other = build(shards, seed=1), build(shards, seed=1), build(shards, seed=2)
    first = next(one)
    assert same(first, next(again))
    assert not torch.equal(first.global_crops, next(other).global_crops)


def test_torchs_global_generator_is_left_alone(shards: str) -> None:
    before = torch.get_rng_state()
    next(build(shards))
    assert torch.equal(torch.get_rng_state(), before)


def test_two_ranks_make_the_batch_of_one(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, 2, 6)
    whole = build(pattern, batch_size=4)
    ranks = [build(pattern, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(5):
        expected, parts = next(whole), [next(rank) for rank in ranks]
        joined = torch.stack([p.global_crops.view(2, 2, -1) for p in parts], 2).reshape(8, -1)
        torch.testing.assert_close(joined, expected.global_crops.flatten(1))
        masks = torch.stack([p.masks.view(2, 2, -1) for p in parts], 2).reshape(8, -1)
        assert torch.equal(masks, expected.masks)
        assert ranks[0].state_dict() == ranks[1].state_dict() == whole.state_dict()


def joined(parts: list[Batch], name: str) -> torch.Tensor:
    """The batch that the parts of all ranks make together, in its own order: [crops, B, ...]."""
    crops = 2 if name != "local_crops" else CROPS.local_crops_number
    tensors = [getattr(part, name) for part in parts]
    return torch.stack([t.unflatten(0, (crops, -1)) for t in tensors], 2).flatten(1, 2)


@pytest.mark.parametrize("ranks", [2, 4])
def test_bad_samples_change_nothing_in_what_the_ranks_make_together(
    shards: str, ranks: int
) -> None:
    options: dict[str, Any] = {"shuffle_buffer": 10, "seed": 5}
    whole = build(shards, batch_size=8, **options)
    parts = [
        build(shards, batch_size=8 // ranks, rank=rank, world_size=ranks, **options)
        for rank in range(ranks)
    ]
    for _ in range(12):
        expected, made = next(whole), [next(part) for part in parts]
        assert [key for keys in zip(*(p.keys for p in made), strict=True) for key in keys] == (
            expected.keys
        )
        for name in ("global_crops", "local_crops", "masks"):
            given = getattr(expected, name)
            torch.testing.assert_close(joined(made, name).flatten(0, 1), given)
        total = sum((Counter(part.skipped) for part in made), Counter())
        assert total == Counter(expected.skipped)
    assert whole.skipped["not an image"] >= 2 and whole.skipped["damaged shard"] >= 2


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_ranks_with_unequal_shards_see_each_image_once_an_epoch(tmp_path: Path, ranks: int) -> None:
    # Three shards of 1, 7 and 16 images: fewer than ranks, and of no size that divides anything.
    for shard, numbers in enumerate([range(1), range(1, 8), range(8, 24)]):
        members = [(f"{i:04d}.png", png(i)) for i in numbers]
        (tmp_path / f"s-{shard}.tar").write_bytes(tar_bytes(members))
    loaders = [
        build(tmp_path, batch_size=1, rank=rank, world_size=ranks, shuffle_buffer=3)
        for rank in range(ranks)
    ]
    for epoch in range(2):
        seen = [key for _ in range(24 // ranks) for loader in loaders for key in next(loader).keys]
        assert sorted(seen) == [f"{i:04d}.png" for i in range(24)]
        assert len({str(loader.state_dict()) for loader in loaders}) == 1
        assert loaders[0].state_dict()["position"]["drawn"] == 24 * (epoch + 1)


def test_a_shard_that_only_one_rank_cannot_read_stops_no_rank(tmp_path: Path) -> None:
    copies = [tmp_path / name for name in ("node0", "node1")]
    for copy in copies:
        copy.mkdir()
        write_shards(copy, 3, 5)
    (copies[1] / "s-1.tar").write_bytes(b"not a tar any more" * 100)
    loaders = [
        build(copy, rank=rank, world_size=2, shuffle_buffer=1, max_bad_fraction=0.5)
        for rank, copy in enumerate(copies)
    ]
    for _ in range(20):  # many epochs; equal numbers of batches of equal size on both
        batches = [next(loader) for loader in loaders]
        assert [len(batch.keys) for batch in batches] == [4, 4]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 3), (4, 2), (3, 1)])
def test_resume_on_other_ranks_finishes_the_epoch(tmp_path: Path, before: int, after: int) -> None:
    pattern = write_shards(tmp_path, 5, 12)
    first = [build(pattern, batch_size=2, rank=r, world_size=before) for r in range(before)]
    seen = [key for _ in range(5) for loader in first for key in next(loader).keys]
    state = json.loads(json.dumps(first[-1].state_dict()))
    second = [build(pattern, batch_size=2, rank=r, world_size=after) for r in range(after)]
    for loader in second:
        loader.load_state_dict(state)
    while len(seen) < 60:
        seen += [key for loader in second for key in next(loader).keys]
    assert sorted(seen[:60])[:2] == ["0000.png", "0001.png"]
    # The last batch may reach into the next epoch; what it drew of this one completes it.
    assert len(set(seen)) == 60 and len(seen) - 60 < 2 * after


def test_a_position_continues_on_another_number_of_ranks(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, 2, 6)
    loader = build(pattern, batch_size=6)
    next(loader)
    state, expected = loader.state_dict(), next(loader).keys
    ranks = [build(pattern, batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    for rank, part in enumerate(ranks):
        part.load_state_dict(state)
        assert next(part).keys == expected[rank::3]


def test_an_epoch_has_every_image_once(tmp_path: Path) -> None:
    loader = build(write_folder(tmp_path, ["a", "b", "c"], 4))
    for _ in range(3):
        keys = [key for _ in range(3) for key in next(loader).keys]
        assert len(set(keys)) == 12


def test_a_batch_larger_than_the_data_repeats_images_with_other_crops(tmp_path: Path) -> None:
    batch = next(build(write_folder(tmp_path, ["a"], 1), batch_size=3))
    assert batch.keys == ["a/0.png"] * 3
    assert not torch.equal(batch.global_crops[0], batch.global_crops[1])


def test_skips_are_counted_by_reason_and_named(
    shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    loader = build(shards, batch_size=25)
    with caplog.at_level(logging.WARNING):
        batch = next(loader)
    assert batch.skipped["damaged shard"] >= 1
    assert batch.skipped["not an image"] == 1
    assert dict(loader.skipped) == batch.skipped == loader.state_dict()["skipped"]
    assert "s-1.tar:0006.png" in caplog.text and "s-3.tar" in caplog.text
    assert "0006.png" not in batch.keys


def test_bad_files_in_a_folder_are_replaced_by_others(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a"], 8)
    (tmp_path / "a" / "text.jpg").write_text("hello")
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    loader = build(tmp_path, batch_size=10)
    batch = next(loader)
    assert batch.global_crops.shape[0] == 20
    assert batch.skipped == {"not an image": 1, "empty file": 1}


def test_the_run_stops_when_too_much_is_bad(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a"], 16)
    for i in range(8):
        (tmp_path / "a" / f"{i}.png").write_bytes(b"bad")
    tolerant = build(tmp_path, max_bad_fraction=0.9)
    for _ in range(40):
        next(tolerant)
    strict = build(tmp_path, max_bad_fraction=0.01)
    with pytest.raises(InputError, match=r"of the last \d+ samples cannot be used, more than 1%"):
        for _ in range(40):
            next(strict)


def test_nothing_but_bad_images_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"bad")
    with pytest.raises(InputError, match=r"cannot be used.*a\.png' \(not an image\)"):
        next(build(tmp_path, num_workers=1))


def test_shards_that_vanish_are_skipped_until_they_are_too_many(tmp_path: Path) -> None:
    loader = build(write_shards(tmp_path, 4, 4), shuffle_buffer=1)
    (tmp_path / "s-0.tar").unlink()
    for _ in range(8):
        assert all(int(key[:4]) > 3 for key in next(loader).keys)
    assert loader.skipped["missing shard"] >= 2
    (tmp_path / "s-1.tar").unlink()
    loader = build(tmp_path / "s-2.tar", shuffle_buffer=1)
    loader = build(str(tmp_path / "s-[23].tar"), shuffle_buffer=1)
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    with pytest.raises(InputError, match=r"2 of 2 shards cannot be read|any more"):
        next(loader)


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"version": 99},
        {"version": 1, "seed": 1, "position": {}},
        {"version": 1, "seed": 0, "position": {"epoch": 1}},
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(shards: str, state: Any) -> None:
    loader = build(shards)
    next(loader)
    before = loader.state_dict()
    with pytest.raises(InputError):
        loader.load_state_dict(state)
    assert loader.state_dict() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0"),
        ({"num_workers": -1}, "num_workers: -1"),
        ({"patch_size": 5}, "global_crops_size: 16 is not a multiple"),
        ({"rank": 2, "world_size": 2}, "rank: 2"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction"),
        ({"max_image_pixels": 0}, "max_image_pixels"),
        ({"shuffle_buffer": 0}, "shuffle_buffer"),
    ],
)
def test_wrong_arguments_are_refused_when_building(
    shards: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(shards, **options)


def test_finishing_on_a_device_gives_the_same_batches(shards: str) -> None:
    here, there = build(shards), build(shards, device="cpu", num_workers=1)
    for _ in range(3):
        assert same(next(here), next(there))
    there.close()


def test_closing_leaves_no_process_and_the_loader_usable(shards: str) -> None:
    before = multiprocessing.active_children()
    loader = build(shards, num_workers=2)
    first = next(loader)
    assert len(workers_since(before)) == 2
    loader.close()
    assert not workers_since(before)
    assert not same(next(loader), first)
    loader.close()


def test_an_interrupted_wait_loses_no_batch(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, loader = build(shards), build(shards)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    assert same(next(loader), next(undisturbed))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BatchMaker, "__getitem__", interrupt)
        next(loader)
    assert same(next(loader), next(undisturbed))


def test_a_worker_that_dies_is_one_clear_error(
    shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch looks whether its workers live every 5 seconds
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    # Where another DataLoader was before, a handler of torch's is set for the whole process.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = multiprocessing.active_children()
    loader = build(shards, num_workers=1)
    next(loader)
    [victim] = workers_since(before)
    victim.kill()
    time.sleep(0.2)  # the death must not interrupt this process outside the loader
    with pytest.raises(FrancaError, match="data worker died"):
        for _ in range(20):
            next(loader)
    assert not workers_since(before)
    signal.signal(signal.SIGCHLD, handler)


def _train(path: str, ready: Any, errors: Any, alive: Any) -> None:
    """A process with two workers that runs until it is ended; `alive` closes with the last one."""
    os.setsid()
    os.dup2(errors.fileno(), 2)
    os.set_inheritable(alive.fileno(), True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for i, _ in enumerate(build(path, num_workers=2)):
            if i == 3:
                ready.send("running")
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_no_process_and_no_noise_is_left_behind(shards: str, tmp_path: Path, how: str) -> None:
    context = multiprocessing.get_context("fork")
    ready, to_ready = context.Pipe(duplex=False)
    alive, to_alive = context.Pipe(duplex=False)
    with (tmp_path / "errors.txt").open("wb") as errors:
        process = context.Process(target=_train, args=(shards, to_ready, errors, to_alive))
        process.start()
    to_alive.close()
    assert ready.poll(60) and ready.recv() == "running"
    assert process.pid is not None
    if how == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.kill()
    process.join(30)
    assert process.exitcode == (130 if how == "interrupt" else -signal.SIGKILL)
    assert alive.poll(30)  # the end of the file: nobody holds the other end any more
    if how == "interrupt":
        assert "Traceback" not in (tmp_path / "errors.txt").read_text()


def test_optional_packages_are_imported_only_where_they_are_needed() -> None:
    for file in Path(franca_fast.data.__file__).parent.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            )
            packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
            assert packages <= {"", "franca_fast", "numpy", "torch", "PIL"}, file

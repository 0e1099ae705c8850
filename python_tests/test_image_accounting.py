"""What becomes of images, in everything that reads them, against a plain independent reader.

300 random folders and tars (see `random_sources`): of each, check, statistics, packing, features
and training find the same images, use the same ones, and name the same reasons for the others.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from franca_fast.cli.main import main
from franca_fast.data import (
    CropSettings,
    MaskSettings,
    build_train_loader,
    check_shards,
    index_cache,
    open_images,
    pack_shards,
    shard_statistics,
    shards,
)
from franca_fast.data.accounting import ImageAccount
from franca_fast.errors import InputError
from franca_fast.evaluation import embed
from franca_fast.spelling import unspell
from franca_fast.training import pretrain
from python_tests.plain_reader import Plain, Seen, plain_label, read_source, size_of
from python_tests.random_sources import write_source
from python_tests.training.tiny import TINY

SOURCES, AT_ONCE = 300, 50
BLOCKS = [range(start, start + AT_ONCE) for start in range(0, SOURCES, AT_ONCE)]
# The whole image as it is, where it has 8 x 8 pixels.
WHOLE = CropSettings(
    global_crops_size=8,
    global_crops_scale=(1.0, 1.0),
    local_crops_number=0,
    aspect_ratio=(1.0, 1.0),
    flip_probability=0.0,
    jitter_probability=0.0,
    greyscale_probability=0.0,
    blur_probability_global=(0.0, 0.0),
    solarize_probability_global=(0.0, 0.0),
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)


class Case(NamedTuple):
    """A random source, and what the plain reader sees in it."""

    seed: int
    path: Path
    seen: Seen

    def refuses(self, read: Callable[[Path], Any], *, usable: bool = False) -> bool:
        """Whether a source without an image (that is usable) is refused, as it must be."""
        if self.seen.used() if usable else self.seen.images:
            return False
        with pytest.raises(InputError):
            read(self.path)
        return True


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Images are so small here that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[range], Iterator[Case]]:
    folder, made = tmp_path_factory.mktemp("sources"), dict[int, Case]()

    def cases(seeds: range) -> Iterator[Case]:
        for seed in seeds:
            if seed not in made:
                path = write_source(seed, folder / str(seed))
                made[seed] = Case(seed, path, read_source(path))
            yield made[seed]

    return cases


def sums(account: ImageAccount) -> dict[str, Any]:
    """An account without remarks, which say nothing of the numbers of images."""
    assert account.adds_up
    counts = account.as_dict()
    del counts["remarks"]
    return counts


def names(images: list[Plain]) -> list[str]:
    return [image.name for image in images]


@pytest.mark.parametrize("seeds", BLOCKS)
def test_the_plain_reader_has_much_to_count(sources: Any, seeds: range) -> None:
    reasons = Counter[str]()
    for case in sources(seeds):
        reasons += case.seen.skipped() + case.seen.left_out_by_rule() + case.seen.remarks()
        reasons["used"] += len(case.seen.used())
    assert len(reasons) >= 11 and reasons["used"] > 4 * AT_ONCE


@pytest.mark.parametrize("seeds", BLOCKS)
def test_check(sources: Any, seeds: range) -> None:
    for case in sources(seeds):
        if case.refuses(check_shards):
            continue
        checked = check_shards(case.path)
        assert sums(checked.account) == case.seen.account(), case.path
        assert checked.account.remarks == case.seen.remarks(), case.path
        left_out = sorted(f"{name}" for _, name in case.seen.left_out)
        places = [entry.location for entry in checked.left_out if not entry.detail]
        # A place is such as `folder/a.tar:b/c.png` or `folder/b/c.png`.
        inner = [place.removeprefix(str(case.path)).lstrip("/") for place in places]
        inner = [re.sub(r"^[^/:]*\.(tar|tar\.gz|tgz):", "", name) for name in inner]
        assert sorted(inner) == left_out, case.path


def test_indexes_from_the_cache_say_the_same(
    sources: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRANCA_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(index_cache, "SMALLEST_SHARD", 0)
    monkeypatch.setattr(index_cache, "_SETTLED", -1.0)
    cases = [case for case in sources(BLOCKS[0]) if case.seen.images]
    first = [check_shards(case.path) for case in cases]
    monkeypatch.setattr(shards, "tar_samples", None)  # no header is read again
    monkeypatch.setattr(shards.TarShard, "seems_empty", lambda self: False)
    plain = [i for i, case in enumerate(cases) if not list(case.path.glob("*gz"))]
    assert len(plain) > 10 and [check_shards(cases[i].path) for i in plain] == [
        first[i] for i in plain
    ]


@pytest.mark.parametrize("seeds", BLOCKS)
def test_statistics(sources: Any, seeds: range) -> None:
    for case in sources(seeds):
        if case.refuses(shard_statistics):
            continue
        found = shard_statistics(case.path, colours=True)
        used = case.seen.used()
        assert sums(found.account) == case.seen.account(), case.path
        sizes = zip(found.widths.tolist(), found.heights.tolist(), strict=True)
        assert Counter(sizes) == Counter(size_of(one.data) for one in used), case.path
        known = [str(one.label) for one in used if one.label is not None]
        assert named(found.classes, found.class_names) == Counter(known), case.path
        if used:
            mean = np.mean([one.pixels.mean((0, 1)) / 255 for one in used], 0)
            np.testing.assert_allclose(found.mean, mean, atol=1e-9)


def named(counts: Counter[int], class_names: list[str]) -> Counter[str]:
    return Counter({class_names[k] if class_names else str(k): n for k, n in counts.items()})


@pytest.mark.parametrize("seeds", BLOCKS)
def test_images_and_their_pixels(sources: Any, seeds: range) -> None:
    for case in sources(seeds):
        if case.refuses(open_images):
            continue
        opened = open_images(case.path)
        images = list(opened.labelled())
        used = case.seen.used()
        assert sums(opened.account) == case.seen.account(), case.path
        assert [name for name, _, _ in images] == names(used), case.path
        assert [label for _, _, label in images] == [one.label for one in used], case.path
        for (_, image, _), plain in zip(images, used, strict=True):
            assert np.array_equal(np.asarray(image), plain.pixels), (case.path, plain.name)


@pytest.mark.parametrize("seeds", BLOCKS)
def test_features(sources: Any, seeds: range) -> None:
    encode = partial(torch.flatten, start_dim=1)
    for case in sources(seeds):
        read = partial(embed, encode, img_size=4)
        if case.refuses(read, usable=True):
            continue
        features = read(case.path)
        used = case.seen.used()
        assert sums(features.account) == case.seen.account(), case.path
        assert features.names == names(used), case.path
        labels = [-1] * len(used) if features.labels is None else features.labels.tolist()
        classes = [
            (features.class_names or range(2**31))[label] if label >= 0 else None
            for label in labels
        ]
        texts = [None if one.label is None else str(one.label) for one in used]
        assert [None if name is None else str(name) for name in classes] == texts, case.path
        wanted = torch.stack([_centre(one.pixels) for one in used])
        assert torch.allclose(_unnormalised(features.features), wanted, atol=1e-3), case.path


def _centre(pixels: np.ndarray) -> torch.Tensor:
    """The middle 4 x 4 pixels of an image whose shorter side is made 4 pixels long."""
    image = Image.fromarray(pixels)
    scale = 4 / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 4) // 2, (height - 4) // 2
    cut = np.array(image.crop((left, top, left + 4, top + 4)))
    return torch.from_numpy(cut).permute(2, 0, 1).float()


def _unnormalised(features: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (CropSettings.mean, CropSettings.std))
    return (features.reshape(-1, 3, 4, 4) * std + mean) * 255


@pytest.mark.parametrize("seeds", BLOCKS)
def test_several_sources_are_the_sum_of_them(sources: Any, seeds: range) -> None:
    cases = [case for case in sources(seeds) if case.seen.used()]
    for group in (cases[:3], cases[3:5], cases[5:9]):
        seen = Seen()
        for part in (case.seen for case in group):
            seen.images += part.images
            seen.left_out += part.left_out
            seen.damaged_shards += part.damaged_shards
        paths = [case.path for case in group]
        features = embed(partial(torch.flatten, start_dim=1), paths, img_size=4)
        assert sums(features.account) == seen.account(), paths
        assert sums(check_shards(paths).account) == seen.account(), paths
        assert features.names == names(seen.used()), paths


@pytest.mark.parametrize("seeds", BLOCKS)
def test_packing_and_what_was_packed(sources: Any, seeds: range, tmp_path: Path) -> None:
    for case in sources(seeds):
        output = tmp_path / str(case.seed)
        if case.refuses(lambda path, output=output: pack_shards(path, output)):
            continue
        packed = pack_shards(case.path, output, max_count=4, seed=case.seed)
        assert sums(packed.account) == case.seen.account(pixels=False), case.path
        used = [one for one in case.seen.images if not one.header]
        assert packed.images == len(used), case.path
        if not used:
            assert not output.exists()
            continue
        given = Counter((one.data, _text(one.label)) for one in used)
        assert Counter(_packed(output)) == given, case.path
        again = read_source(output)
        assert again.found == len(used) and not again.left_out, case.path
        assert check_shards(output).images == len(again.used()), case.path
        kept = pack_shards(case.path, output, max_count=4, seed=case.seed)
        assert kept.account.adds_up and kept.account.found == case.seen.found, case.path
        assert (kept.images, kept.kept) == (len(used), len(kept.shards)), case.path


def _text(label: Any) -> str:
    return "" if label is None else str(label)


def _packed(folder: Path) -> Iterator[tuple[bytes, str]]:
    """The images of packed shards, and their classes, by Python's `tarfile` alone."""
    for path in folder.glob("*.tar"):
        with tarfile.open(path, errors="surrogateescape") as tar:
            files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
            classes = json.loads(tar.pax_headers.get("franca_fast.classes", "[]"))
        for name, data in files.items():
            key, _, extension = name.partition(".")
            if extension != "cls":
                label = plain_label(files.get(f"{key}.cls", b"-1"))
                known = classes and isinstance(label, int)
                yield data, unspell(classes[label]) if known else _text(label)


@pytest.mark.parametrize("seeds", BLOCKS)
def test_packing_of_smaller_images(sources: Any, seeds: range, tmp_path: Path) -> None:
    for case in sources(seeds[::5]):
        if not case.seen.used():
            continue
        output = tmp_path / str(case.seed)
        packed = pack_shards(case.path, output, max_side=5)
        assert sums(packed.account) == case.seen.account(pixels=False, above=5), case.path
        sizes = [max(size_of(one.data)) for one in read_source(output).images]
        assert len(sizes) == packed.images and max(sizes) <= 5, case.path


@pytest.mark.parametrize("seeds", BLOCKS)
def test_one_epoch_of_training(sources: Any, seeds: range) -> None:
    for case in sources(seeds):
        build = partial(_loader, batch_size=1)
        if case.refuses(lambda path, build=build: next(build(path)), usable=True):
            continue
        batches = _batches(build(case.path), len(case.seen.images))
        account = ImageAccount()
        for batch in batches:
            account.update(batch.account.as_dict())
        assert sums(account) == case.seen.account(), case.path
        own = [batch for batch in batches if batch.account.used]
        assert sorted(batch.keys[0] for batch in own) == sorted(names(case.seen.used())), case.path
        whole = [one for one in case.seen.used() if size_of(one.data) == (8, 8)]
        crops = {(batch.keys[0], _bytes(batch.global_crops[0])) for batch in own}
        assert {(one.name, one.pixels.tobytes()) for one in whole} <= crops, case.path


@pytest.mark.parametrize("seeds", BLOCKS)
def test_two_epochs_of_training_on_two_ranks(sources: Any, seeds: range) -> None:
    for case in sources(seeds):
        if not case.seen.used():
            continue
        account, keys = ImageAccount(), Counter[str]()
        for rank in range(2):
            options = {"batch_size": len(case.seen.images), "rank": rank, "world_size": 2}
            (batch,) = _batches(_loader(case.path, **options), 1)
            account.update(batch.account.as_dict())
            keys.update(batch.keys)
        assert sums(account) == case.seen.account(times=2), case.path
        # Spares stand in for images that cannot be used.
        assert Counter(2 * names(case.seen.used())) <= keys, case.path


def _loader(path: Path, **options: Any) -> Any:
    masking = MaskSettings(mask_sample_probability=0.0)
    return build_train_loader(
        path, crops=WHOLE, masking=masking, patch_size=4, max_bad_fraction=1.0, **options
    )


def _batches(loader: Any, count: int) -> list[Any]:
    with loader:
        return [next(loader) for _ in range(count)]


def _bytes(crop: torch.Tensor) -> bytes:
    return (crop * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes()


@pytest.mark.parametrize("seeds", BLOCKS)
def test_check_exits_1_when_anything_is_not_used(
    sources: Any, seeds: range, capfd: pytest.CaptureFixture[str]
) -> None:
    for case in sources(seeds[::5]):
        if not case.seen.images:
            continue
        reasons = case.seen.skipped() + case.seen.left_out_by_rule() + case.seen.remarks()
        assert main(["shards", "check", str(case.path)]) == bool(reasons), case.path
        printed = capfd.readouterr().out
        counts = case.seen.account()
        assert f"{counts['found']} images found = {counts['used']} used" in printed, case.path
        assert all(f"{count}: {reason}" in printed for reason, count in reasons.items()), case.path


@pytest.mark.parametrize("seed", [4, 9, 28])
def test_metrics_of_a_run_add_up_after_whole_epochs(
    sources: Any, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    (case,) = sources(range(seed, seed + 1))
    overrides = (
        f"train.dataset_path={case.path}",
        f"train.batch_size_per_gpu={len(case.seen.images)}",
        "train.max_bad_fraction=1.0",
        "train.OFFICIAL_EPOCH_LENGTH=3",
        "optim.epochs=1",
        "optim.warmup_epochs=0",
    )
    pretrain(TINY, tmp_path / "run", overrides=overrides, verbose=False)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    names = ("found_samples", "used_samples", "skipped_samples", "left_out_samples")
    for epochs, line in enumerate(lines, 1):
        account = case.seen.account(times=epochs)
        sums = (sum(part.values()) for part in (account["skipped"], account["left_out"]))
        assert [line[name] for name in names] == [account["found"], account["used"], *sums]
    assert len(lines) == 3

"""Labels go by the names of classes, whatever a set is kept in and whatever the other one lacks.

Random training and test sets of a dozen classes, in parts of different kinds (class folders, shards
packed apart, shards of WebDataset, those of earlier versions): kNN on them gives exactly what kNN
gives on the clean images, or refuses and names the classes. It never gives another number.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from franca_fast.cli.main import main
from franca_fast.data import open_images, pack_shards, shard_statistics
from franca_fast.errors import InputError
from franca_fast.evaluation import Embeddings, embed, knn
from franca_fast.evaluation.class_matching import check_sources, match_classes
from franca_fast.hub.save import save_backbone
from franca_fast.models import VisionTransformer
from franca_fast.spelling import spell
from python_tests.data.files import encoded, tar_bytes

CLASSES, TRAIN, TEST, K = range(12), 6, 4, 3
SETS = 120
AT_ONCE = 40
# Names of the twelve classes; each list sorts in an order of its own.
NAMINGS = {
    "words": [
        *("shirt", "dress", "coat", "bag", "boot", "sandal"),
        *("pullover", "trouser", "sneaker", "top", "hat", "scarf"),
    ],
    "digits": [str(i) for i in CLASSES],
    "digits from one": [str(i + 1) for i in CLASSES],
    "digits backwards": [str(99 - 9 * i) for i in CLASSES],
    "padded": [f"{i:03d}" for i in CLASSES],
    "bytes": [os.fsdecode(bytes([0xE9 - 7 * i, 0x80 + i, 0x61])) for i in CLASSES],
    "odd": ["a b", " a", "É", "e\u0301", "\\xe9", "x.y", "-x", "_", "日本", "#1", "1e5", "None"],
}
KINDS = ("folder", "packed", "packed, no file beside", "packed by 0.2", "text", "numbers", "json")


class Part(NamedTuple):
    """Some images of a set, in one folder or shard.

    Attributes:
        kind: one of KINDS.
        images: (class, number) of each.
    """

    kind: str
    images: list[tuple[int, int]]


@cache
def picture(label: int, number: int) -> bytes:
    """One image of a class: its colours, and so much noise that half of them are mistaken."""
    clean = np.random.default_rng(label).integers(0, 256, (4, 4, 3))
    noise = np.random.default_rng((label, number)).integers(-250, 250, (4, 4, 3))
    return encoded(Image.fromarray(np.clip(clean + noise, 0, 255).astype(np.uint8)))


encode: Callable[..., Embeddings] = partial(embed, partial(torch.flatten, start_dim=1), img_size=4)


@cache
def feature(label: int, number: int, folder: Path) -> np.ndarray:
    """The feature of an image on its own; float64, of unit length."""
    path = folder / f"{label}-{number}.png"
    path.write_bytes(picture(label, number))
    vector = encode(path).features[0].double().numpy()
    return vector / np.linalg.norm(vector)


def clean_accuracy(train: list[Part], test: list[Part], folder: Path) -> float:
    """Weighted kNN by its definition, on the true classes."""
    memory = [image for part in train for image in part.images]
    queries = [image for part in test for image in part.images]
    features = np.array([feature(*image, folder) for image in memory])
    right = 0
    for label, number in queries:
        similar = features @ feature(label, number, folder)
        votes = np.zeros(len(CLASSES))
        for i in np.argsort(-similar)[:K]:
            votes[memory[i][0]] += np.exp((similar[i] - similar.max()) / 0.07)
        right += int(votes.argmax() == label)
    return 100 * right / len(queries)


def members(names: list[str], part: Part, label: Callable[[int], bytes]) -> Iterator[Any]:
    extension = "json" if part.kind == "json" else "cls"
    for i, (c, number) in enumerate(part.images):
        yield f"{i}.png", picture(c, number)
        yield f"{i}.{extension}", label(c)


def write_part(part: Part, names: list[str], path: Path) -> Path:
    """Writes a part as its kind is kept; returns the source."""
    shard = path / "shard-000000.tar"
    path.mkdir()
    if part.kind in ("folder", "packed", "packed, no file beside"):
        folder = path / "images"
        for c, number in part.images:
            (folder / names[c]).mkdir(parents=True, exist_ok=True)
            (folder / names[c] / f"{number}.png").write_bytes(picture(c, number))
        if part.kind == "folder":
            return folder
        pack_shards(folder, path / "shards", max_count=7)
        for file in (path / "shards").glob("*.json") if "no file" in part.kind else ():
            file.unlink()
        return path / "shards"
    if part.kind == "packed by 0.2":  # which sorted the names as text
        known = sorted({names[c] for c, _ in part.images})
        settings = {"pattern": "shard-%06d.tar", "max_size": 1 << 30, "max_count": 10_000}
        packing = {"version": 1, "settings": settings, "images": len(part.images), "contents": ""}
        (path / "packing.json").write_text(json.dumps({**packing, "classes": known}))
        write = members(names, part, lambda c: str(known.index(names[c])).encode())
    elif part.kind == "json":
        write = members(names, part, lambda c: json.dumps({"label": names[c]}).encode())
    else:
        write = members(names, part, lambda c: os.fsencode(said(part.kind, names, c)))
    shard.write_bytes(tar_bytes(write))
    return path


def said(kind: str, names: list[str], c: int) -> str:
    """What stands for a class in a part: its name, or its number where that is all there is."""
    as_number = names[c] if names[c].isdigit() else str(c)
    return as_number if kind == "numbers" else names[c]


def meant(kind: str, names: list[str], c: int) -> str:
    """The class that it can be taken for: numbers are numbers, however they are written."""
    text = said(kind, names, c)
    if kind in ("numbers", "text", "json"):
        text = str(int(text)) if text.isdigit() else text.strip()
    return text


def random_set(draw: random.Random, classes: list[int], images: int) -> list[Part]:
    """Images of some classes, in one to three parts of random kinds."""
    parts = [Part(draw.choice(KINDS), []) for _ in range(draw.choice((1, 1, 2, 3)))]
    for c in classes:
        one = draw.choice(parts)
        for number in range(images):
            part = draw.choice(parts) if draw.random() < 0.2 else one
            part.images.append((c, number + (0 if images == TRAIN else TRAIN)))
    return [part for part in parts if part.images]


def random_case(seed: int) -> tuple[list[Part], list[Part], list[str]]:
    draw = random.Random(seed)
    names = NAMINGS[draw.choice(list(NAMINGS))]
    here = draw.sample(CLASSES, draw.randrange(3, len(CLASSES) + 1))
    there = draw.sample(here, draw.randrange(1, len(here) + 1))
    if draw.random() < 0.15:
        there.append(draw.choice(CLASSES))
    train, test = random_set(draw, here, TRAIN), random_set(draw, list(dict.fromkeys(there)), TEST)
    if draw.random() < 0.5:  # more of them can be matched
        kinds = [draw.choice((KINDS[0], KINDS[1], KINDS[2], KINDS[3])) for _ in (*train, *test)]
        parts = [Part(kind, part.images) for kind, part in zip(kinds, (*train, *test), strict=True)]
        train, test = parts[: len(train)], parts[len(train) :]
    return train, test, names


def classes_of(parts: list[Part], names: list[str]) -> dict[str, set[int]]:
    """What a set says of its classes -> the true classes of these images."""
    found = dict[str, set[int]]()
    for part in parts:
        for c, _ in part.images:
            found.setdefault(meant(part.kind, names, c), set()).add(c)
    return found


def has_two_names(parts: list[Part], names: list[str]) -> bool:
    """Whether some class has two names in a set: where its number is all that one part says."""
    said_of = [(c, name) for name, known in classes_of(parts, names).items() for c in known]
    return len({c for c, _ in said_of}) < len(said_of)


def write_set(parts: list[Part], names: list[str], path: Path) -> list[Path]:
    path.mkdir()
    return [write_part(part, names, path / str(i)) for i, part in enumerate(parts)]


@pytest.fixture(scope="module")
def features_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.mark.parametrize("first", range(0, SETS, AT_ONCE))
def test_knn_equals_that_of_the_clean_set_or_is_refused(
    first: int, tmp_path: Path, features_folder: Path
) -> None:
    accuracies, refused = list[float](), 0
    for seed in range(first, first + AT_ONCE):
        train, test, names = random_case(seed)
        if has_two_names(train, names) or has_two_names(test, names):
            continue  # of which the test below is
        here, there = classes_of(train, names), classes_of(test, names)
        lacking = sorted(there.keys() - here.keys())
        (tmp_path / str(seed)).mkdir()
        sources = [
            write_set(parts, names, tmp_path / str(seed) / role)
            for parts, role in ((train, "train"), (test, "test"))
        ]
        if lacking:
            refused += 1
            with pytest.raises(InputError) as error:
                knn(*map(encode, sources), (K,))
            assert any(f"'{spell(name)}'" in str(error.value) for name in lacking), seed
        else:
            check_sources(*sources)  # which must not refuse what can be matched
            (accuracy,) = knn(*map(encode, sources), (K,))[48].values()
            assert accuracy == pytest.approx(clean_accuracy(train, test, features_folder)), seed
            accuracies.append(accuracy)
    assert len(accuracies) >= AT_ONCE // 3 and refused >= AT_ONCE // 10
    assert len(set(accuracies)) > 5 and 20 < np.mean(accuracies) < 90


@pytest.mark.parametrize("kind", ["folder", "packed, no file beside", "text"])
def test_a_class_whose_number_is_all_that_one_part_says_is_warned_of(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = NAMINGS["words"]
    parts = [Part(kind, [(0, 0), (1, 0)]), Part("numbers", [(0, 1), (2, 1)])]
    assert has_two_names(parts, names)
    assert set(text_labels(encode(write_set(parts, names, tmp_path / "set")))) == {
        *names[:2],
        *"02",
    }
    assert "2 classes have numbers and no names, others have names" in caplog.text


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("kind", ["folder", "packed", "packed, no file beside"])
def test_a_renamed_class_is_refused_by_its_name(kind: str, naming: str, tmp_path: Path) -> None:
    names = NAMINGS[naming]
    parts = [Part(kind, [(c, number) for c in range(4) for number in range(2)])]
    other = [*names[:3], "77 renamed"]
    sources = [write_set(parts, known, tmp_path / known[3]) for known in (names, other)]
    with pytest.raises(InputError, match="'77 renamed'"):
        knn(*map(encode, sources), (K,))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_names_come_back_from_files_of_features(suffix: str, naming: str, tmp_path: Path) -> None:
    names = NAMINGS[naming]
    path = tmp_path / f"features{suffix}"
    given = encode(write_set([ALL], names, tmp_path / "set"), output=path)
    read = Embeddings.load(path)
    assert sorted(given.class_names) == sorted(names)
    assert (read.names, read.class_names) == (given.names, given.class_names)
    assert [name.split("/")[0] for name in read.names] == text_labels(read)


@pytest.mark.parametrize("naming", NAMINGS)
def test_names_come_back_from_packed_shards(naming: str, tmp_path: Path) -> None:
    names = NAMINGS[naming]
    part = Part("packed, no file beside", ALL.images)
    source = write_set([part], names, tmp_path / "set")
    features, statistics = encode(source), shard_statistics(source)
    assert sorted(statistics.class_names) == sorted(names)
    assert set(statistics.classes.values()) == {2}
    assert [name.split("/")[0].replace(".", "_") for name in features.names] == [
        name.replace(".", "_") for name in text_labels(features)
    ]
    again = pack_shards(source, tmp_path / "again")
    assert again.class_names == features.class_names
    assert sorted(text_labels(encode(again.folder))) == sorted(text_labels(features))


@pytest.mark.parametrize("naming", ["words", "digits backwards", "bytes"])
def test_eval_knn_says_the_names(naming: str, tmp_path: Path) -> None:
    names = NAMINGS[naming]
    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=32, depth=1, num_heads=2)
    weights = save_backbone(model, tmp_path / "model")
    half = Part("folder", [image for image in ALL.images if image[0] != 5])
    (train,), (test,) = (
        write_set([part], names, tmp_path / role) for role, part in (("train", ALL), ("test", half))
    )
    command = ["eval", "knn", str(weights), "--train", str(train), "--test", str(test), "--k", "1"]
    assert main([*command, "--output", str(tmp_path / "knn.json")]) == 0
    result = json.loads((tmp_path / "knn.json").read_text("utf-8"))
    assert sorted(result["data"]["train"]["class_names"]) == sorted(map(spell, names))
    assert result["details"]["classes without test images"] == [spell(names[5])]
    assert result["figures"]["32"]["k=1"] == 100.0
    images = result["data"]["test"]["account"]
    assert images["found"] == images["used"] == len(half.images)


ALL = Part("folder", [(c, number) for c in CLASSES for number in range(2)])


def text_labels(embeddings: Embeddings) -> list[str]:
    assert embeddings.labels is not None
    return [embeddings.class_names[label] for label in embeddings.labels.tolist()]


def write_old(path: Path, names: list[str], features: torch.Tensor, labels: torch.Tensor) -> Path:
    """Features as 0.1 and 0.2 wrote them."""
    if path.suffix == ".npz":
        np.savez(path, names=np.array(names), features=features.numpy(), labels=labels.numpy())
    elif path.suffix == ".safetensors":
        text = torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8)
        save_file({"features": features, "names_json": text, "labels": labels}, path)
    else:
        import pyarrow
        from pyarrow import parquet

        values = pyarrow.array(features.numpy().reshape(-1))
        rows = pyarrow.FixedSizeListArray.from_arrays(values, features.shape[1])
        columns = {"name": pyarrow.array(names), "features": rows, "label": labels.numpy()}
        parquet.write_table(pyarrow.table(columns), path)
    return path


def old_of(new: Embeddings, path: Path) -> Embeddings:
    """What 0.2 would have written of class folders: labels are places in a list sorted as text."""
    known = sorted(set(text_labels(new)))
    labels = torch.tensor([known.index(name) for name in text_labels(new)])
    return Embeddings.load(write_old(path, new.names, new.features, labels))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
@pytest.mark.parametrize("naming", ["words", "digits", "digits from one", "padded", "odd"])
def test_old_features_of_class_folders_join_with_new_and_old_ones(
    suffix: str, naming: str, tmp_path: Path, features_folder: Path
) -> None:
    names = NAMINGS[naming]
    train = [Part("folder", [(c, number) for c in CLASSES for number in range(TRAIN)])]
    test = [Part("folder", [(c, 7) for c in CLASSES if c not in (1, 8)])]
    new = [
        encode(write_set(parts, names, tmp_path / role))
        for role, parts in (("train", train), ("test", test))
    ]
    old = [old_of(part, tmp_path / f"{i}{suffix}") for i, part in enumerate(new)]
    assert old[0].names == new[0].names and torch.equal(old[0].features, new[0].features)
    clean = clean_accuracy(train, test, features_folder)
    for pair in ((old[0], new[1]), (new[0], old[1]), (old[0], old[1])):
        assert knn(*pair, (K,))[48][K] == pytest.approx(clean)
        assert set(match_classes(*pair).untested) == {names[1], names[8]}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_old_features_with_numbers_alone_keep_them(suffix: str, tmp_path: Path) -> None:
    new = encode(write_set([ALL], NAMINGS["digits"], tmp_path / "set"))
    assert new.labels is not None
    plain = [f"{i}.png" for i in range(len(new))]
    old = Embeddings.load(write_old(tmp_path / f"f{suffix}", plain, new.features, new.labels))
    assert old.class_names == [] and torch.equal(old.labels, new.labels)
    assert knn(old, new, (1,)) == knn(new, old, (1,)) == knn(old, old, (1,)) == {48: {1: 100.0}}
    words = encode(write_set([ALL], NAMINGS["words"], tmp_path / "words"))
    with pytest.raises(InputError, match=r"'bag'.* numbers of classes, which have no names there"):
        knn(old, words, (1,))
    with pytest.raises(InputError, match="'0'"):
        knn(words, old, (1,))


@pytest.mark.parametrize("kinds", list(combinations(KINDS[:5], 2)))
def test_classes_of_a_source_of_two_kinds_are_one_list(
    kinds: tuple[str, str], tmp_path: Path
) -> None:
    names = NAMINGS["words"]
    parts = [
        Part(kind, [(c, number) for c in classes for number in range(2)])
        for kind, classes in zip(kinds, (range(8), range(4, 12)), strict=True)
    ]
    sources = write_set(parts, names, tmp_path / "set")
    opened = open_images(sources)
    assert len([1 for _ in opened]) == 32
    assert sorted(opened.class_names) == sorted(names)
    features = encode(sources)
    true = [c for part in parts for c, _ in part.images]
    assert sorted(text_labels(features)) == sorted(names[c] for c in true)

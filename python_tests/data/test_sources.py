from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from franca_fast.data import fashion_mnist_shards, open_source
from franca_fast.data.accounting import ImageAccount
from franca_fast.data.packing import pack_shards
from franca_fast.data.remote import RemoteShard
from franca_fast.data.shards import ImageFiles, TarShard
from franca_fast.data.sources import Source
from franca_fast.errors import InputError
from python_tests.data.files import png, tar_bytes, write_folder, write_shards


def names(source: Source) -> list[str]:
    indexes = [shard.index() for shard in source.shards]
    return [index.ref(i).name for index in indexes for i in range(len(index))]


def labels(source: Source) -> list[int | str | None]:
    indexes = [shard.index() for shard in source.shards]
    return [index.label(i) for index in indexes for i in range(len(index))]


def test_the_bundled_fashion_mnist() -> None:
    train = open_source("FashionMNIST:split=TRAIN")
    assert len(names(train)) == 6000
    assert set(labels(train)) == set(range(10))
    assert len(names(open_source("FashionMNIST:split=TEST"))) == 1000
    assert [Path(path).name for path in fashion_mnist_shards("TRAIN")] == [
        f"train-00000{i}.tar.gz" for i in range(3)
    ]


def test_a_folder_of_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, ["dog", "cat"], 2)
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "loose.png").write_bytes(png(0))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.png").write_bytes(png(0))
    source = open_source(tmp_path)
    assert names(source) == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "loose.png"]
    assert labels(source) == ["cat", "cat", "dog", "dog", None]
    assert source.class_names == ["cat", "dog"]


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    assert labels(open_source(tmp_path)) == [None]


def left_out(source: Source) -> dict[str, int]:
    account = ImageAccount()
    for shard in source.shards:
        account.open(shard.index().opened)
    assert account.found == len(names(source)) + account.left_out.total()
    return dict(account.left_out)


def test_hidden_images_are_counted_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", "cat/.b.png", ".trash/c.png", ".trash/deep/d.png", ".e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(0))
    source = open_source(tmp_path)
    assert names(source) == ["a.png"]
    assert left_out(source) == {"hidden file": 4}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (map(str, range(12)), list(map(str, range(12)))),
        (["10", "9", "08", "007"], ["007", "08", "9", "10"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["b", "B", "a"], ["B", "a", "b"]),
    ],
)
def test_classes_that_are_numbers_come_in_their_order(
    tmp_path: Path, classes: Iterable[str], expected: list[str]
) -> None:
    assert open_source(write_folder(tmp_path, classes, 1)).class_names == expected


def test_a_folder_that_is_linked_twice_is_two_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, ["cat"], 2)
    (tmp_path / "kitten").symlink_to(tmp_path / "cat")
    assert labels(open_source(tmp_path)) == ["cat", "cat", "kitten", "kitten"]


def test_shards_that_were_packed_apart_keep_their_own_names(tmp_path: Path) -> None:
    for part, classes in {"one": ["bag", "dress", "shirt"], "two": ["shirt", "coat"]}.items():
        write_folder(tmp_path / "photos" / part, classes, 1)
        pack_shards(tmp_path / "photos" / part, tmp_path / "shards" / part, seed=None)
    source = open_source(str(tmp_path / "shards" / "*" / "*.tar"))
    assert labels(source) == ["bag", "dress", "shirt", "coat", "shirt"]
    assert source.class_names == ["bag", "coat", "dress", "shirt"]


def test_names_beside_shards_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    members = [("a.png", png(0)), ("a.cls", b"1"), ("b.png", png(1)), ("b.cls", b"0")]
    (tmp_path / "shard-000000.tar").write_bytes(tar_bytes(members))
    (tmp_path / "other.tar").write_bytes(tar_bytes(members))  # not one of the packed ones
    packing = {"settings": {"pattern": "shard-%06d.tar"}, "classes": ["cat", "dog"]}
    (tmp_path / "packing.json").write_text(json.dumps(packing))
    assert labels(open_source(tmp_path / "shard-000000.tar")) == ["dog", "cat"]
    assert labels(open_source(tmp_path / "other.tar")) == [1, 0]


@pytest.mark.parametrize("inner", ["n01.tar", "part/a.tgz", "x.tar.gz"])
def test_a_tar_of_tars_says_so(tmp_path: Path, inner: str) -> None:
    (tmp_path / "all.tar").write_bytes(tar_bytes([(inner, tar_bytes([("a.png", png(0))]))]))
    with pytest.raises(InputError, match=r"'.*all.tar' is a tar of tars .*; accepted: the folder"):
        open_source(tmp_path / "all.tar")


def test_a_pattern_of_shards_and_images_is_ambiguous(tmp_path: Path) -> None:
    write_shards(tmp_path, 1, 1)
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(InputError, match=r"holds both images and shards .*s-0.tar.*a.png"):
        open_source(str(tmp_path / "*"))


def test_links_to_folders_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    write_folder(tmp_path / "real", ["cat"], 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "animals").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    assert names(open_source(tmp_path / "data")) == ["animals/cat/0.png"]


def test_braces_wildcards_folders_and_lists_of_shards(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, 3, 2)
    expected = [f"{i:04d}.png" for i in range(6)]
    assert names(open_source(pattern)) == expected
    assert names(open_source(str(tmp_path / "s-*.tar"))) == expected
    assert names(open_source(tmp_path)) == expected
    assert (
        names(open_source([tmp_path / "s-2.tar", tmp_path / "s-0.tar"]))
        == expected[4:] + expected[:2]
    )
    assert names(open_source(f"LAION:root={tmp_path}")) == expected
    assert names(open_source(f"LAION:root={pattern}")) == expected


def test_lists_as_webdataset_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, 4, 1)
    monkeypatch.setenv("HOME", str(tmp_path))
    listed = f"{tmp_path}/s-3.tar::~/s-{{0..1}}.tar::{tmp_path}/s-[2].tar"
    assert names(open_source(listed)) == ["0003.png", "0000.png", "0001.png", "0002.png"]
    assert names(open_source(f"LAION:root={tmp_path}/s-1.tar::~/s-0.tar")) == [
        "0001.png",
        "0000.png",
    ]
    monkeypatch.setenv("WDS_WHERE", str(tmp_path))
    assert names(open_source("${WHERE}/s-{0..1}.tar")) == ["0000.png", "0001.png"]
    with pytest.raises(InputError, match=r"2 of 3 shards are missing, '.*s-8.tar' first"):
        open_source(f"{tmp_path}/s-0.tar::{tmp_path}/s-{{8..9}}.tar")


def test_variables_in_a_command_are_the_shells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, 2, 1)
    monkeypatch.setenv("WDS_WHERE", str(tmp_path))
    command = "pipe:n=1; cat ${WHERE}/s-${n}.tar"
    assert names(open_source(command, allow_pipe=True)) == ["0001.png"]
    commands = f"pipe:n=0; cat {tmp_path}/s-${{n}}.tar::pipe:cat {tmp_path}/s-1.tar"
    assert names(open_source(commands, allow_pipe=True)) == ["0000.png", "0001.png"]


def test_colons_within_a_command_are_its_own(tmp_path: Path) -> None:
    write_shards(tmp_path, 2, 1)
    first, second = (f"pipe:cat {tmp_path}/s-{i}.tar; touch {tmp_path}/{i}::a" for i in range(2))
    assert names(open_source(first, allow_pipe=True)) == ["0000.png"]
    assert (tmp_path / "0::a").is_file()
    assert names(open_source(f"{first}::{second}", allow_pipe=True)) == ["0000.png", "0001.png"]
    assert (tmp_path / "1::a").is_file()


@pytest.mark.parametrize("other", ["no/such/folder", "B.tra", "sizes.json", "a.png"])
def test_whatever_a_list_names_is_read_or_refused(tmp_path: Path, other: str) -> None:
    write_shards(tmp_path, 1, 1)
    (tmp_path / "a.png").write_bytes(png(0))
    for form in ("{shard}::{other}", "{other}::{shard}"):
        spec = form.format(shard=tmp_path / "s-0.tar", other=tmp_path / other)
        with pytest.raises(InputError, match=f"names '.*{other}' beside others"):
            open_source(spec)


def test_one_dataset_string_names_one_dataset() -> None:
    with pytest.raises(InputError, match="accepted: one dataset"):
        open_source("FashionMNIST:split=TEST::FashionMNIST:split=TRAIN")


def test_image_files_and_wildcards_of_them(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c.txt"):
        (tmp_path / name).write_bytes(png(0))
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert names(open_source(str(tmp_path / "*"))) == paths
    assert names(open_source(paths[1])) == paths[1:]
    assert isinstance(open_source(paths[1]).shards[0], ImageFiles)


def test_the_environment_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, 1, 1)
    monkeypatch.setenv("WHERE_DATA_IS", str(tmp_path))
    assert names(open_source("$WHERE_DATA_IS/s-0.tar")) == ["0000.png"]
    assert names(open_source("LAION:root=${WHERE_DATA_IS}")) == ["0000.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(open_source("~/s-{0..0}.tar")) == ["0000.png"]


def test_a_path_with_special_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "odd[1]{a,b}:c"
    write_folder(folder, ["x"], 1)
    assert names(open_source(folder)) == ["x/0.png"]
    assert names(open_source(f"LAION:root={folder}:extra=/nowhere")) == ["x/0.png"]


def test_imagenet_by_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ["n02", "n01"], 1)
    source = open_source(f"ImageNet:split=TRAIN:root={tmp_path}:extra={tmp_path}")
    assert names(source) == ["n01/0.png", "n02/0.png"]
    with pytest.raises(InputError, match=r"val': no such"):
        open_source(f"ImageNet:split=VAL:root={tmp_path}")


def test_imagenet22k_class_tars_are_shuffled_whole(tmp_path: Path) -> None:
    for name in ("n02.tar", "n01.tar"):
        (tmp_path / name).write_bytes(tar_bytes([(f"{name[:3]}_1.JPEG", png(0))]))
    source = open_source(f"ImageNet22k:root={tmp_path}:extra=/nowhere")
    assert names(source) == ["n01_1.JPEG", "n02_1.JPEG"]
    assert labels(source) == ["n01", "n02"]
    assert source.class_names == ["n01", "n02"]
    assert source.shuffle_whole


def test_some_missing_shards_are_skipped_and_many_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(tmp_path, 3, 1)
    with caplog.at_level(logging.WARNING):
        source = open_source(str(tmp_path / "s-{0..3}.tar"))
    assert len(names(source)) == 3
    assert "s-3.tar" in caplog.text
    with pytest.raises(InputError, match=r"7 of 10 shards are missing, '.*s-3.tar' first"):
        open_source(str(tmp_path / "s-{0..9}.tar"))


def test_commands_only_when_allowed(tmp_path: Path) -> None:
    write_shards(tmp_path, 2, 1)
    command = f"pipe:cat {tmp_path}/s-{{0..1}}.tar"
    with pytest.raises(InputError, match="allow_pipe"):
        open_source(command)
    source = open_source(command, allow_pipe=True)
    assert all(isinstance(shard, RemoteShard) for shard in source.shards)
    assert names(source) == ["0000.png", "0001.png"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/nowhere/at/all", "no such file or folder"),
        ("/nowhere/{0..3}.tar", "no such file"),
        ("/nowhere/*.tar", "no such file"),
        ("hdfs://host/a.tar", "accepted: local paths, http://, https://, s3://, gs://"),
        ("ImagNet:split=TRAIN:root=/x", "did you mean 'ImageNet'"),
        ("Fashion_MNIST", "did you mean 'FashionMNIST'"),
        ("ImageNet:split=TRAIN", "needs root=PATH"),
        ("LAION", "needs root=PATH"),
        ("LAION:rot=/x", "did you mean 'root'"),
        ("ImageNet:split=TRIAN:root=/tmp", "did you mean 'train'"),
        ("FashionMNIST:split=val", "accepted: train, test"),
        ("ImageNet22k:root=/nowhere", "no such file or folder"),
        ("$NOT_SET_ANYWHERE/x", "NOT_SET_ANYWHERE is not set"),
        ("a{b", "accepted: balanced braces"),
        ("pipe:cat x", "allow_pipe"),
    ],
)
def test_wrong_strings_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(spec)


def test_nothing_usable_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is empty"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"it holds 1 .txt"):
        open_source(tmp_path)
    with pytest.raises(InputError, match="neither an image nor a shard"):
        open_source(tmp_path / "a.txt")
    with pytest.raises(InputError, match="accepted: at least one path"):
        open_source([])
    (tmp_path / "empty.tar").write_bytes(tar_bytes([("a.txt", b"1")]))
    with pytest.raises(InputError, match="no images in"):
        open_source(tmp_path / "empty.tar")
    (tmp_path / "text.tar").write_text("x" * 600)
    with pytest.raises(InputError, match=r"unreadable shard, .*not a tar file"):
        open_source(tmp_path / "text.tar")


def test_a_folder_of_both_is_ambiguous(tmp_path: Path) -> None:
    write_shards(tmp_path, 1, 1)
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(InputError, match="both images and shards"):
        open_source(tmp_path)
    assert isinstance(open_source(f"{tmp_path}/**/*.tar").shards[0], TarShard)


def _loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("loop.tar", _loop, "too many levels of symbolic links"),
        ("loop.png", _loop, "too many levels of symbolic links"),
        ("n" * 300 + ".tar", lambda path: None, "file name too long"),
        ("gone.tar", lambda path: path.symlink_to("nothing"), "a link to what is missing"),
        ("gone.tar", lambda path: None, "no such file or folder"),
    ],
)
def test_what_is_there_and_cannot_be_read_is_not_called_missing(
    tmp_path: Path, name: str, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}': {reason}"):
        open_source(tmp_path / name)


def test_a_class_in_two_forms_of_unicode_is_one(tmp_path: Path) -> None:
    write_folder(tmp_path, ["cafe\u0301", "caf\u00e9", "x"], 1)
    source = open_source(tmp_path)
    assert len(source.class_names) == 2
    assert len(set(labels(source))) == 2 and None not in labels(source)


def test_hidden_images_beside_shards_are_counted(tmp_path: Path) -> None:
    write_shards(tmp_path, 2, 3)
    for name in ("._a.png", "deep/.b.jpg", ".trash/c.png", "._s-0.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(0))
    source = open_source(tmp_path)
    assert len(names(source)) == 6
    assert left_out(source) == {"hidden file": 3}

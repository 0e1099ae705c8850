"""From what a user writes to a list of shards: paths, patterns and dataset strings."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from franca_fast.data.accounting import INNER_TAR
from franca_fast.data.classes import class_key, class_order
from franca_fast.data.dataset_strings import check_choice, expanded, split_dataset_string
from franca_fast.data.decoding import IMAGE_EXTENSIONS, is_image_name
from franca_fast.data.folders import list_folder
from franca_fast.data.openood import read_openood_list
from franca_fast.data.remote import RemoteShard, is_remote
from franca_fast.data.shards import ImageFiles, Shard, TarShard, packed_classes
from franca_fast.data.tar_index import TAR_EXTENSIONS
from franca_fast.errors import InputError, did_you_mean
from franca_fast.paths import MISSING, why_unreadable

logger = logging.getLogger(__name__)

_SHARDS_TRIED = 8  # how many shards to look into before saying that there are no images
_BUNDLED = Path(__file__).parent / "fashion_mnist"


@dataclass
class Source:
    """Where the images of a data set are.

    Attributes:
        description: what the user wrote.
        shards: in their fixed order.
        shuffle_whole: neighbouring samples are alike (one shard per class), so that only a
            shuffle of everything mixes them.
        class_names: names of the classes, as far as they are known without reading labels.
        all_classes_known: whether there are no others.
    """

    description: str
    shards: list[Shard]
    shuffle_whole: bool = False
    class_names: list[str] = field(default_factory=list)
    all_classes_known: bool = False


def open_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    allow_pipe: bool = False,
    max_missing_fraction: float = 0.1,
) -> Source:
    """Finds the shards or image files that a user names.

    Accepted, also several in a sequence:

    - an image file, or a folder of images; the first level of sub-folders are classes;
    - a shard (`.tar`, `.tar.gz`, `.tgz`), or a folder of shards;
    - brace ranges and wildcards of either: `shards/{00000..00127}.tar`, `photos/*.jpg`; and, as
      in WebDataset, several with `::` between them;
    - a shard elsewhere: `https://host/{000..127}.tar` (needs curl), `s3://bucket/a.tar` (aws),
      `gs://bucket/a.tar` (gsutil);
    - `FashionMNIST:split=TRAIN` (or TEST), bundled with the package;
    - `ImageNet:split=TRAIN:root=PATH` (folders PATH/train/nXXXXXXXX);
    - `ImageNet22k:root=PATH` (one tar per class); `LAION:root=PATH` (img2dataset's shards);
      `extra=PATH` is accepted and not needed;
    - `OpenOOD:root=PATH:list=test_ninco.txt` (a list in PATH/benchmark_imglist/imagenet, its images
      in PATH/images_largescale or PATH/images_classic);
    - `pipe:COMMAND`, if `allow_pipe`: a shell command that writes a tar.

    `~` and environment variables in paths and URLs are expanded. Shards that come from elsewhere
    or from a command are held in memory while they are used.

    Args:
        source: what to open.
        allow_pipe: whether `pipe:` may run commands.
        max_missing_fraction: how many of the shards that a brace range names may be missing
            (one always may); they are skipped.

    Returns:
        at least one shard; images were seen in one of them.

    Raises:
        InputError: nothing there, no images in it, or an unknown dataset name.

    Example:
        >>> len(open_source("FashionMNIST:split=TRAIN").shards)
        3
    """
    given = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    if len(given) > 1 and all(
        is_image_name(os.fspath(one)) and os.path.isfile(one) for one in given
    ):
        description = f"{len(given)} image files"
        return Source(description, [ImageFiles(description, "", [os.fspath(one) for one in given])])
    parts = [_open_one(os.fspath(one), allow_pipe, max_missing_fraction) for one in given]
    if not parts:
        raise InputError("source: [], no images; accepted: at least one path")
    whole = Source(
        ", ".join(part.description for part in parts),
        [shard for part in parts for shard in part.shards],
        any(part.shuffle_whole for part in parts),
        class_order(name for part in parts for name in part.class_names),
        all(part.all_classes_known for part in parts),
    )
    _check_images(whole)
    return whole


def fashion_mnist_shards(split: str) -> list[str]:
    """Paths of the bundled Fashion-MNIST shards.

    28 x 28 grey images with a `.cls` label each: 6,000 for "train", 1,000 for "test".

    Raises:
        InputError: another split.

    Example:
        >>> [PurePath(path).name for path in fashion_mnist_shards("test")]
        ['test-000000.tar.gz']
    """
    check_choice("split", split.lower(), ("train", "test"))
    return sorted(str(path) for path in _BUNDLED.glob(f"{split.lower()}-*.tar.gz"))


def _open_one(spec: str, allow_pipe: bool, max_missing_fraction: float) -> Source:
    options = {name: known for name, (_, known) in _DATASETS.items()}
    named = None if is_remote(spec) else split_dataset_string(spec, options)
    if named is None:
        return _open_path(spec, max_missing_fraction, allow_pipe)
    source = _DATASETS[named[0]][0](named[1])
    source.description = spec
    return source


def _open_path(spec: str, max_missing_fraction: float = 0.1, allow_pipe: bool = False) -> Source:
    paths, named = _expand_path(spec)
    folders = [path for path in paths if os.path.isdir(path)]
    if folders:
        if len(paths) > 1:
            raise InputError(f"source: {spec}; accepted: one folder (or a list, or their root)")
        return _open_folder(folders[0], spec)
    shards: list[Shard] = [
        RemoteShard(path, allow_pipe=allow_pipe) if is_remote(path) else TarShard(path)
        for path in paths
        if is_remote(path) or path.lower().endswith(TAR_EXTENSIONS)
    ]
    images = [path for path in paths if is_image_name(path) and os.path.isfile(path)]
    if shards:
        _check_used(spec, named, lambda path: path.lower().endswith(TAR_EXTENSIONS))
        _check_missing(spec, [shard.name for shard in shards], max_missing_fraction)
        if images:
            raise _both(spec, f"such as '{shards[0].name}' and '{images[0]}'", "shards/*.tar")
        return _open_shards(spec, shards)
    if images:
        _check_used(spec, named, is_image_name)
        return Source(spec, [ImageFiles(spec, "", images)])
    if any(os.path.exists(path) for path in paths):
        accepted = ", ".join((*IMAGE_EXTENSIONS, *TAR_EXTENSIONS))
        raise InputError(f"source: '{spec}', neither an image nor a shard; accepted: {accepted}")
    raise _unreadable(spec, paths)


def _open_folder(folder: str, spec: str) -> Source:
    """A folder of images, or one of shards."""
    found = list_folder(folder)
    if found.images and found.shards:
        raise _both(spec, f"'{found.shards[0]}' and '{found.images[0]}'", f"{folder}/**/*.tar")
    if found.shards:
        first, *others = (os.path.join(folder, path) for path in found.shards)
        hidden = tuple(found.left_out.listed(folder.rstrip(os.sep), os.sep))
        return _open_shards(spec, [TarShard(first, beside=hidden), *map(TarShard, others)])
    if not found.images:
        raise InputError(
            f"source: no images in '{spec}' ({found.others_in_words()}); accepted: a folder with "
            "images or shards"
        )
    classes = class_order(PurePath(p).parts[0] for p in found.images if os.path.dirname(p))
    numbers = {class_key(name): i for i, name in enumerate(classes)}
    labels = [numbers.get(class_key(PurePath(path).parts[0]), -1) for path in found.images]
    known = labels if classes else None
    files = ImageFiles(spec, folder, found.images, known, classes, found.left_out)
    return Source(spec, [files], class_names=classes, all_classes_known=True)


def _both(spec: str, examples: str, accepted: str) -> InputError:
    return InputError(
        f"source: '{spec}' holds both images and shards ({examples}); accepted: one of the two, "
        f"such as {accepted}"
    )


def _open_shards(spec: str, shards: list[Shard]) -> Source:
    """Shards, with the classes that `pack_shards` wrote beside them, in all their folders."""
    one_each = {os.path.dirname(shard.name): shard.name for shard in shards}
    lists = [[] if is_remote(name) else packed_classes(name) for name in one_each.values()]
    names = class_order(name for known in lists for name in known)
    return Source(spec, shards, class_names=names, all_classes_known=all(lists))


def _open_imagenet(options: dict[str, str]) -> Source:
    split = options.get("split", "TRAIN").lower()
    check_choice("split", split, ("train", "val", "test"))
    return _open_path(os.path.join(_existing_folder(options["root"]), split))


def _open_imagenet22k(options: dict[str, str]) -> Source:
    root = _existing_folder(options["root"])
    shards = list_folder(root).shards
    if not shards:
        raise InputError(f"root: '{root}'; accepted: a folder of class tars (nXXXXXXXX.tar)")
    classes = [PurePath(path).name.split(".", 1)[0] for path in shards]
    paths = [os.path.join(root, path) for path in shards]
    tars: list[Shard] = [TarShard(*pair) for pair in zip(paths, classes, strict=True)]
    names = class_order(classes)
    return Source("", tars, shuffle_whole=True, class_names=names, all_classes_known=True)


def _open_fashion_mnist(options: dict[str, str]) -> Source:
    return Source(
        "", [TarShard(path) for path in fashion_mnist_shards(options.get("split", "train"))]
    )


def _open_openood(options: dict[str, str]) -> Source:
    name = options.get("list")
    if not name:
        raise InputError("OpenOOD: no list; accepted: list=NAME, such as list=test_ninco.txt")
    folder, paths, labels = read_openood_list(_existing_folder(options["root"]), name)
    labelled = labels if max(labels) >= 0 else None
    return Source("", [ImageFiles(name, folder, paths, labelled)], all_classes_known=False)


_DATASETS: dict[str, tuple[Callable[[dict[str, str]], Source], tuple[str, ...]]] = {
    "ImageNet": (_open_imagenet, ("split", "root", "extra")),
    "ImageNet22k": (_open_imagenet22k, ("root", "extra", "split")),
    "LAION": (lambda options: _open_path(options["root"]), ("root", "extra", "split")),
    "OpenOOD": (_open_openood, ("root", "list")),
    "FashionMNIST": (_open_fashion_mnist, ("split",)),
}


def _expand_path(spec: str) -> tuple[list[str], list[str]]:
    """A path as it is, or the paths, URLs and commands that a list of shards stands for.

    And which local ones of them were named, not found by a pattern.
    """
    path = spec
    if not spec.startswith("pipe:"):  # in a command the shell does it
        path = expanded(spec)
    if os.path.exists(path):
        return [path], [path]
    found, named = list[str](), list[str]()
    for one in _expand_list(path):
        if is_remote(one):
            found.append(one)
        else:
            one = os.path.expanduser(one)
            pattern = glob.has_magic(one)
            found.extend(sorted(glob.glob(one, recursive=True)) if pattern else [one])
            named.extend([] if pattern else [one])
    return found, named


def _check_used(spec: str, named: list[str], is_used: Callable[[str], bool]) -> None:
    """Refuses a list in which something was named that would not be read."""
    for path in named:
        if not is_used(path):
            raise InputError(
                f"source: '{spec}' names '{path}' beside others; accepted: only shards, or only "
                "images"
            )


def _expand_list(text: str) -> list[str]:
    """What WebDataset makes of braces, of `::` and of `${NAME}` where WDS_NAME is set.

    Within a command `::` is the command's own, up to the next URL or command.
    """
    if "{" not in text and "::" not in text:
        return [text]
    from webdataset.shardlists import expand_urls

    # It refuses names that are not set; in a command they may be the shell's.
    hidden = re.sub(
        r"\$(?=\{(\w+)\})", lambda name: "$" if f"WDS_{name[1]}" in os.environ else "$\0", text
    )
    parts = [
        part.replace("::", ":\0:") if part.startswith("pipe:") else part
        for part in re.split(r"::(?=pipe:|[a-z][a-z0-9+.-]*://)", hidden)
    ]
    try:
        return [one.replace("\0", "") for one in expand_urls("::".join(parts))]
    except (ValueError, AssertionError, KeyError) as error:
        raise InputError(f"source: '{text}', {error}; accepted: balanced braces") from None


def _existing_folder(path: str) -> str:
    folder = expanded(path)
    if not os.path.isdir(folder):
        raise _unreadable(path, [folder])
    return folder


def _check_missing(spec: str, shards: list[str], max_missing_fraction: float) -> None:
    missing = [path for path in shards if not is_remote(path) and not os.path.isfile(path)]
    if len(missing) == len(shards):
        raise _unreadable(spec, missing)
    if len(missing) > max(1, max_missing_fraction * len(shards)):
        raise InputError(
            f"source: '{spec}', {len(missing)} of {len(shards)} shards are missing, "
            f"'{missing[0]}' first; accepted: at most {max_missing_fraction:.0%} of them"
        )
    if missing:
        logger.warning(
            "%d of %d shards are missing, '%s' first", len(missing), len(shards), missing[0]
        )


def _check_images(source: Source) -> None:
    """Looks into the first shards until one has an image."""
    problems = list[str]()
    for shard in source.shards[:_SHARDS_TRIED]:
        if not shard.seems_empty():
            return
        index = shard.index()
        if len(index):
            return
        problems += [
            f"{one.location}: {one.reason}{f', {one.detail}' if one.detail else ''}"
            for one in (*index.opened.skipped, *index.opened.left_out)
        ]
        if any(one.reason == INNER_TAR for one in index.opened.left_out):
            raise InputError(
                f"source: '{shard.name}' is a tar of tars and holds no images itself; accepted: "
                "the folder into which it was unpacked (tar -xf)"
            )
    why = f" ({problems[0]})" if problems else ""
    raise InputError(
        f"source: no images in '{source.description}'{why}; accepted: at least one image"
    )


def _unreadable(spec: str, paths: Sequence[str]) -> InputError:
    """The error for paths of which none can be read, and what may be wrong with them."""
    why = next((why for path in paths if (why := why_unreadable(path))), MISSING)
    hint = "" if ":" in spec or os.sep in spec else did_you_mean(spec, _DATASETS)
    unset = re.findall(r"\$\{?(\w+)", os.path.expandvars(spec))
    if unset:
        hint = f" (the environment variable {unset[0]} is not set)"
    return InputError(
        f"source: '{spec}': {why}{hint if why == MISSING else ''}; "
        f"accepted: what exists, a URL, or a dataset ({', '.join(_DATASETS)})"
    )

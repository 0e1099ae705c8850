"""The features that image-level protocols work on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from franca_fast.data import open_source
from franca_fast.data.remote import RemoteShard
from franca_fast.data.shards import ImageFiles
from franca_fast.errors import InputError
from franca_fast.evaluation.embeddings import Embeddings, check_output
from franca_fast.evaluation.encoders import Encoder, image_size_of
from franca_fast.evaluation.feature_cache import FeatureCache, encoder_facts
from franca_fast.evaluation.features import embed
from franca_fast.evaluation.protocol import Reading, Sources
from franca_fast.spelling import spell

PROTOCOL_SIZE, PROTOCOL_RESIZE = 224, 256


def embed_roles(
    encoder: Encoder,
    sources: Mapping[str, Sources],
    img_size: int | None,
    resize: int | None,
    reading: Reading,
) -> dict[str, Embeddings]:
    """CLS features of the images of each role.

    Args:
        encoder: on its device.
        sources: role -> what `embed` takes.
        img_size: side in pixels; None takes 224, or the encoder's own size where that is smaller.
        resize: pixels of the shorter side before the middle is cut out; None takes 256 with 224
            pixels, and the size itself elsewhere.
        reading: how. With `features_cache` features are kept there.

    Raises:
        InputError: see `embed`; or a folder of features that cannot be made.
    """
    size = protocol_size(encoder, img_size)
    if resize is None and size == PROTOCOL_SIZE:
        resize = PROTOCOL_RESIZE
    return {
        role: _embedded(encoder, given, size, resize, reading) for role, given in sources.items()
    }


def protocol_size(encoder: Encoder, img_size: int | None) -> int:
    """The side of the images: as asked, else 224, or the encoder's own where that is smaller.

    Raises:
        InputError: no multiple of the encoder's patch.
    """
    if img_size is None:
        img_size = min(image_size_of(encoder, None), PROTOCOL_SIZE)
    return image_size_of(encoder, img_size)


def _embedded(
    encoder: Encoder, given: Sources, size: int, resize: int | None, reading: Reading
) -> Embeddings:
    def compute() -> Embeddings:
        return embed(
            encoder,
            given,
            img_size=size,
            resize=resize,
            batch_size=reading.batch_size,
            num_workers=reading.num_workers,
            precision=reading.precision,
            **reading.decoding,
        )

    if reading.features_cache is None:
        return compute()
    facts = {
        "kind": "embeddings",
        **encoder_facts(encoder, reading.precision),
        "data": _fingerprint(given),
        "size": [size, resize],
        "decoding": dict(reading.decoding),
    }
    file = FeatureCache(reading.features_cache).path(facts, ".safetensors")
    if file.is_file():
        with suppress(InputError):  # a damaged one is computed again
            return Embeddings.load(file)
    check_output(file, overwrite=True)
    embeddings = compute()
    embeddings.save(file, overwrite=True)  # which another process may have been quicker to do
    return embeddings


def _fingerprint(given: Sources) -> list[Any]:
    """What changes when the images of a source do, or their classes.

    These are their files with sizes and times of change, and the names of classes: the same files
    show others when a folder above or below is named.

    Raises:
        InputError: images that come from elsewhere, of which nobody knows whether they change.
    """
    source = open_source([os.fspath(one) for one in given], max_missing_fraction=1)
    facts: list[Any] = [source.class_names]
    for shard in source.shards:
        if isinstance(shard, RemoteShard):
            raise InputError(
                f"features_cache: with '{shard.name}', of which nothing tells whether it changed; "
                "accepted: files and folders"
            )
        if isinstance(shard, ImageFiles):
            index = shard.index()
            facts += [[*_stamp(index.ref(i).path), index.label(i)] for i in range(len(index))]
        else:
            facts.append(_stamp(shard.name))
    return facts


def _stamp(file: str) -> list[Any]:
    status = os.stat(file) if os.path.exists(file) else None
    return [file, status and status.st_size, status and status.st_mtime_ns]


def described(embeddings: Embeddings) -> dict[str, Any]:
    """What a result says of a role's images: counts, classes, and what became of the files."""
    occurring = 0 if embeddings.labels is None else len(embeddings.labels.unique())
    facts = {name: value for name, value in embeddings.facts.items() if name != "images"}
    return {
        "images": len(embeddings),
        "classes": occurring,
        "class_names": [spell(name) for name in embeddings.class_names],
        "account": embeddings.account.as_dict(),
        **facts,
    }

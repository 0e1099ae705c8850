"""Data: shards and folders, decoding, augmentation, masks, and the loader for training."""

from __future__ import annotations

from .batch import Batch
from .decoding import SkipCounter, decode_rgb
from .images import Images, eval_transform, open_images
from .inspection import CheckedShards, ShardStatistics, check_shards, shard_statistics
from .loader import TrainLoader, build_train_loader
from .masking import BlockMask, CyclicMask, InverseBlockMask, RandomMask
from .packing import PackedShards, PackSettings, pack_shards
from .settings import CropSettings, MaskSettings
from .sources import Source, fashion_mnist_shards, open_source

__all__ = [
    "Batch",
    "BlockMask",
    "CheckedShards",
    "CropSettings",
    "CyclicMask",
    "Images",
    "InverseBlockMask",
    "MaskSettings",
    "PackSettings",
    "PackedShards",
    "RandomMask",
    "ShardStatistics",
    "SkipCounter",
    "Source",
    "TrainLoader",
    "build_train_loader",
    "check_shards",
    "decode_rgb",
    "eval_transform",
    "fashion_mnist_shards",
    "open_images",
    "open_source",
    "pack_shards",
    "shard_statistics",
]

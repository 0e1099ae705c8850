"""Data: shards and folders, decoding, augmentation, masks, and the loader for training."""

from __future__ import annotations

from franca_fast.data.accounting import SkipCounter
from franca_fast.data.batch import Batch
from franca_fast.data.decoding import decode_rgb
from franca_fast.data.images import Images, open_images
from franca_fast.data.inspection import (
    CheckedShards,
    ShardStatistics,
    check_shards,
    shard_statistics,
)
from franca_fast.data.loader import TrainLoader, build_train_loader
from franca_fast.data.masking import BlockMask, CyclicMask, InverseBlockMask, RandomMask
from franca_fast.data.pack_settings import PackSettings
from franca_fast.data.packing import PackedShards, pack_shards
from franca_fast.data.pipeline import multi_crop
from franca_fast.data.segmentation import open_segmentation
from franca_fast.data.segmented_images import SegmentedImages, matched_masks
from franca_fast.data.settings import CropSettings, MaskSettings
from franca_fast.data.sources import Source, fashion_mnist_shards, open_source
from franca_fast.data.transform import eval_transform

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
    "SegmentedImages",
    "ShardStatistics",
    "SkipCounter",
    "Source",
    "TrainLoader",
    "build_train_loader",
    "check_shards",
    "decode_rgb",
    "eval_transform",
    "fashion_mnist_shards",
    "matched_masks",
    "multi_crop",
    "open_images",
    "open_segmentation",
    "open_source",
    "pack_shards",
    "shard_statistics",
]

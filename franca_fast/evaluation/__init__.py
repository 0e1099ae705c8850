"""Protocols that measure or show features; each takes any encoder."""

from __future__ import annotations

from franca_fast.evaluation.dense.in_context import in_context
from franca_fast.evaluation.dense.keypoints import keypoints
from franca_fast.evaluation.dense.linear_segmentation import linear_segmentation
from franca_fast.evaluation.dense.object_discovery import object_discovery
from franca_fast.evaluation.dense.overclustering import overclustering
from franca_fast.evaluation.dense.video import video
from franca_fast.evaluation.embeddings import Embeddings, check_output
from franca_fast.evaluation.encoders import check_pooling, load_encoder
from franca_fast.evaluation.evaluate import evaluate, protocols
from franca_fast.evaluation.features import embed
from franca_fast.evaluation.image.knn import knn, nearest_neighbours
from franca_fast.evaluation.image.linear import linear
from franca_fast.evaluation.image.logistic_regression import logistic_regression
from franca_fast.evaluation.image.ood import ood
from franca_fast.evaluation.image.retrieval import retrieval
from franca_fast.evaluation.pca import visualize_pca
from franca_fast.evaluation.protocol import Protocol, Reading, Role
from franca_fast.evaluation.result import Result

__all__ = [
    "Embeddings",
    "Protocol",
    "Reading",
    "Result",
    "Role",
    "check_output",
    "check_pooling",
    "embed",
    "evaluate",
    "in_context",
    "keypoints",
    "knn",
    "linear",
    "linear_segmentation",
    "load_encoder",
    "logistic_regression",
    "nearest_neighbours",
    "object_discovery",
    "ood",
    "overclustering",
    "protocols",
    "retrieval",
    "video",
    "visualize_pca",
]

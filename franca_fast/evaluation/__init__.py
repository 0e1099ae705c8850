"""Protocols that measure or show features; each takes any encoder."""

from __future__ import annotations

from franca_fast.evaluation.embeddings import Embeddings, check_output
from franca_fast.evaluation.encoders import check_pooling, load_encoder
from franca_fast.evaluation.evaluate import evaluate, protocols
from franca_fast.evaluation.features import embed
from franca_fast.evaluation.image.knn import knn
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
    "knn",
    "load_encoder",
    "protocols",
    "visualize_pca",
]

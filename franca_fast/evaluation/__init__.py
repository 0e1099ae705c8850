"""Protocols that measure or show features; each takes any encoder."""

from __future__ import annotations

from franca_fast.evaluation.embeddings import Embeddings, check_output
from franca_fast.evaluation.encoders import check_pooling
from franca_fast.evaluation.features import embed
from franca_fast.evaluation.image.knn import knn
from franca_fast.evaluation.pca import visualize_pca

__all__ = ["Embeddings", "check_output", "check_pooling", "embed", "knn", "visualize_pca"]

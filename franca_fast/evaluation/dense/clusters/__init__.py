"""Clusters of pixels and the classes that they stand for."""

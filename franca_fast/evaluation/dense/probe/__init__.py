"""A linear head on patch tokens: its crops, its training, its sliding windows."""

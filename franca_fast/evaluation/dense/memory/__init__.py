"""The memory of in-context segmentation, which passes by and is never held."""

"""Several processes training one model: who they are, and how they share the work."""

"""Protocols that ask of each image what it shows."""

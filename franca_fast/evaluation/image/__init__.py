"""Protocols on one feature vector per image: a file for each, which ends with its `PROTOCOL`."""

"""Protocols that ask of each patch or pixel what it shows."""

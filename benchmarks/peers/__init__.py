"""Peers that need an environment of their own: `python -m benchmarks.peers`."""

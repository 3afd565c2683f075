"""Noise that clients add themselves: local and distributed mechanisms."""

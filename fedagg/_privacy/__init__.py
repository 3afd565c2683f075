"""Differential privacy by noise at the server, and what it is worth."""

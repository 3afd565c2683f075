"""Differential privacy by noise at the server, and the epsilon of it."""

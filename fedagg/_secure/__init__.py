"""Secure sums in jit: values and notes as integers that wrap around."""

"""Secure sums in jit: values and notes as integers that wrap around. What is summed is
what `fedagg.secagg` sums between machines, to the bit."""

"""Arithmetic on pytrees: what a tree measures, how leaves are put together, what
can be wrong with an argument, and templates that remember a structure."""

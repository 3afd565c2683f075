"""Bounds on what one client can do to the sum: zeroing, clipping, and the quantiles
that their bounds are learnt from."""

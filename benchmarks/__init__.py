"""Measurements of fedagg: what a round costs, beside what others pay for it."""

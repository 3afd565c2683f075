"""Recommended compositions: `robust_aggregator` and others, each a line of stages."""

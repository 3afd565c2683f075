"""Rounds: stages in a chain, the aggregator that they make, the mean, error feedback,
and what is asked of a round before it runs, its message's size and who sees it."""

"""A round of training by each peer, run in the peer's own environment."""

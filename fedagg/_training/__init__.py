"""Training: the work of a client, and federated averaging."""

"""A project of a user's own, which knows of fedagg its public names alone."""

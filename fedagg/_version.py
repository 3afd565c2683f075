"""The version, in the one place from which all others have it."""

__version__ = "0.1.0"

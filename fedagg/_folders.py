"""Folders with names of their own, imported when they are first asked for."""

import importlib
import types

_FOLDERS = ("algorithms", "attacks", "flower", "metrics", "secagg")


def __getattr__(name: str) -> types.ModuleType:
    if name in _FOLDERS:
        return importlib.import_module(f"fedagg.{name}")
    raise AttributeError(f"module 'fedagg' has no attribute {name!r}")

"""Checkpoints of a run by Orbax, and of memories on the host beside them."""

import contextlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

from fedagg._files import parsing
from fedagg._training.memories import ClientMemories


def opened(
    stack: contextlib.ExitStack,
    folder: str | os.PathLike[str],
    first: Any,
    memories: ClientMemories | None,
) -> tuple[Any, Callable[[Any], Any]]:
    """The run as it was saved last, or at its beginning, and what saves it."""
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ImportError(
            "a folder for checkpoints needs Orbax: pip install 'fedagg[train]'."
        ) from error
    path = pathlib.Path(folder).absolute() / "checkpoints"
    options = orbax.CheckpointManagerOptions(max_to_keep=2)
    manager = orbax.CheckpointManager(path, options=options)
    stack.callback(manager.close)  # which waits until all is written

    def save(run: Any) -> None:
        if memories is not None:
            # They go back by one commit, which must be that of a whole checkpoint.
            manager.wait_until_finished()
            memories.commit(int(run.rounds))
        manager.save(int(run.rounds), args=orbax.args.StandardSave(run))

    step = manager.latest_step()
    if memories is not None:
        memories.go_back(-1 if step is None else step)
    if step is None:
        return first, save
    with parsing(path / str(step), "the checkpoint of a run like this one"):
        found: Any = manager.restore(step, args=orbax.args.StandardRestore(first))
    return found, save

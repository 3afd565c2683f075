"""Fuzzes the parsers, guided by coverage: `python -m tests.fuzz_secagg -runs=100000`.

Needs `pip install atheris`, which no test does. The first byte of an input picks what
reads the rest. Anything but a typed error, or a second form of a message, stops it.
"""

import sys

import atheris  # pyrefly: ignore[missing-import]  # installed by hand

with atheris.instrument_imports(include=["fedagg.secagg"]):
    from fedagg import secagg
    from fedagg.secagg import _messages as messages

from tests.secagg.rounds import CONTEXT, fixed

PLAN = fixed(secagg.Plan.complete(5, 3, 5, CONTEXT, threshold=2))
KINDS = list(messages._LAYOUTS)


def one_input(data: bytes) -> None:
    which, data = (data[0] if data else 0) % (len(KINDS) + 2), data[1:]
    try:
        if which == len(KINDS):
            if secagg.Plan.decode(data).encode() != data:
                raise RuntimeError("Two forms of a plan.")
            return
        if which > len(KINDS):
            secagg.Server(PLAN).receive(0, data)
            return
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

"""Which rounds a client took part in, kept where a restart does not lose it."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator

from fedagg.secagg._errors import ContradictionError
from fedagg.secagg._plan import Plan

# What a file that is no ledger's makes of the statements below.
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


class Ledger:
    """The rounds of one client, in a file that outlives the process.

    A client with a ledger masks nothing twice: it takes part in a round only if its
    number is above that of all rounds before, and its session is new. A round that
    failed counts; it is run again under another number, with a vector made anew. Any
    number of threads and processes may use one file.

    Args:
        path: of the file, an SQLite database, which is made if there is none.

    Raises:
        ValueError: if the file is damaged, or of something else; `enter` as well.
        sqlite3.OperationalError: if it cannot be opened or written; likewise.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = os.fspath(path)
        with self._open() as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS rounds "
                "(number INTEGER PRIMARY KEY, session BLOB NOT NULL UNIQUE)"
            )

    def enter(self, plan: Plan) -> None:
        """Writes a round down, before anything of it is sent.

        Args:
            plan: the round's.

        Raises:
            ContradictionError: if the client took part in it or in a later one.
        """
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")  # nobody else reads until it is in
            (last,) = database.execute("SELECT MAX(number) FROM rounds").fetchone()
            known = "SELECT 1 FROM rounds WHERE session = ?"
            if database.execute(known, [plan.session]).fetchone():
                raise ContradictionError("This session has been before.")
            if last is not None and plan.number <= last:
                raise ContradictionError(
                    f"Expected a round after {last}, got number {plan.number}."
                )
            row = plan.number, plan.session
            database.execute("INSERT INTO rounds VALUES (?, ?)", row)
            database.execute("COMMIT")

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # Transactions are begun and ended above; closing undoes one that is not ended.
        database = sqlite3.connect(self._path, timeout=60.0, isolation_level=None)
        with contextlib.closing(database):
            try:
                database.execute("PRAGMA synchronous = FULL")
                yield database
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF not in _DAMAGED:
                    raise
                raise ValueError(
                    f"{self._path}: expected the file of a Ledger, got one that is "
                    f"damaged or of something else: {error}."
                ) from error

"""What a server has to send at the end of a step."""

from collections.abc import Callable, Collection, Iterator, Mapping

from fedagg.secagg._messages import SERVER, FromServer, encode
from fedagg.secagg._plan import Plan


class Outbox(Mapping[int, bytes]):
    """The next messages, by client.

    Each is written when it is asked for: all together would take room that grows with
    the square of the cohort.
    """

    def __init__(
        self,
        plan: Plan,
        receivers: Collection[int] = (),
        write: Callable[[int], FromServer] | None = None,
    ):
        self._plan, self._write = plan, write
        self._receivers = frozenset(receivers)

    def __getitem__(self, client: int) -> bytes:
        if client not in self._receivers or self._write is None:
            raise KeyError(client)
        return encode(self._write(client), self._plan, SERVER, client)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._receivers))

    def __len__(self) -> int:
        return len(self._receivers)

"""Rooms that were given up before both sides met on them, and why; bounded in number and age."""

from collections.abc import Iterator
from typing import Final

from disagg_transfer.errors import TransferFailed

MAX_ROOMS: Final = 4096


class Tombstones:
    def __init__(self, *, keep_s: float) -> None:
        self._keep_s = keep_s
        self._rooms: dict[int, tuple[float, TransferFailed, int]] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._rooms)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rooms)

    def put(self, room: int, failure: TransferFailed, *, now: float, told: int = 0) -> None:
        """The first word on a room stands, which `told` have heard already; past the limit the
        oldest room is forgotten.
        """
        if room in self._rooms:
            return
        if len(self._rooms) >= MAX_ROOMS:
            del self._rooms[next(iter(self._rooms))]
        self._rooms[room] = (now, failure, told)

    def take(self, room: int, *, takers: int = 1) -> TransferFailed | None:
        """Why the room was given up, told to so many; a later request may use its number again."""
        found = self._rooms.get(room)
        if found is None:
            return None
        since, failure, told = found
        if told + 1 < takers:
            self._rooms[room] = (since, failure, told + 1)
        else:
            del self._rooms[room]
        return failure

    def sweep(self, now: float) -> None:
        for room, (since, _, _) in list(self._rooms.items()):
            if now - since <= self._keep_s:
                return
            del self._rooms[room]

"""Whose bytes of one peer are asked for next. Pure.

A read goes by pieces. Large reads take turns by piece, small ones pass them, and no more than a
window's worth of bytes is under way: what NIXL has, no later read can pass.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from disagg_transfer.errors import FabricError
from disagg_transfer.nixl_fabric import Handle

PIECE_BYTES: Final = 4 << 20
# Two pieces: while one's last bytes arrive, the next one's request is at the peer already.
WINDOW_BYTES: Final = 2 * PIECE_BYTES
SMALL_BYTES: Final = 256 << 10  # a read of at most this passes larger ones
_MAX_PIECES: Final = 64  # under way per peer, however small they are


class ReadEvent(Enum):
    POSTED = "posted"  # the first piece is with NIXL; a small read that ends at once skips it
    DONE = "done"  # terminal: every byte is here
    FAILED = "failed"  # terminal: nothing moves any more
    SETTLED = "settled"  # terminal, after abandon


Listener = Callable[[ReadEvent, str], None]  # called on the lane's thread
LOST: Final = "lost: "  # begins the detail where NIXL has given the peer's endpoint up


@dataclass(slots=True, eq=False)
class Read:
    """One payload under way."""

    peer: str
    local: int
    remote: int
    nbytes: int
    listener: Listener
    position: int = 0  # handed to NIXL so far
    pieces: int = 0  # with NIXL, not in a terminal state
    posted_at: float = 0.0  # the first piece
    told: bool = False  # that it is posted
    abandoned: bool = False
    fault: FabricError | None = None

    @property
    def posting(self) -> bool:
        return self.position < self.nbytes and not self.abandoned and self.fault is None

    @property
    def next_bytes(self) -> int:
        return min(PIECE_BYTES, self.nbytes - self.position)

    @property
    def small(self) -> bool:
        return self.nbytes <= SMALL_BYTES


@dataclass(frozen=True, slots=True)
class Piece:
    read: Read
    handle: Handle
    nbytes: int


@dataclass(slots=True)
class PeerReads:
    """The reads of one peer, and what of them is with NIXL."""

    reads: list[Read] = field(default_factory=list)  # not ended yet
    small: deque[Read] = field(default_factory=deque)  # with more to post
    large: deque[Read] = field(default_factory=deque)
    pieces: list[Piece] = field(default_factory=list)
    turn: bool = False  # of the large ones: a small one went before

    def add(self, read: Read) -> None:
        self.reads.append(read)
        self.line_up(read)

    def line_up(self, read: Read) -> None:
        if read.posting:
            (self.small if read.small else self.large).append(read)

    def next(self) -> Read | None:
        """Small and large reads in turn while both wait, so that neither starves the other."""
        if len(self.pieces) >= _MAX_PIECES:
            return None
        for line in (self.small, self.large):
            while line and not line[0].posting:
                line.popleft()
        line = self.small if self.small and not (self.turn and self.large) else self.large
        limit = WINDOW_BYTES + (PIECE_BYTES if line is self.small else 0)
        if not line or sum(piece.nbytes for piece in self.pieces) >= limit:
            return None
        self.turn = line is self.small
        return line.popleft()

    def take_ended(self) -> list[Read]:
        ended = [read for read in self.reads if not read.pieces and not read.posting]
        if ended:
            self.reads = [read for read in self.reads if read not in ended]
        return ended

"""Which items of a component a request owns: pure arithmetic on positions, the same on both sides.

Every function answers positions; an engine maps those of pages through its own page table, those
of slots and rows are indices into the pool as they are. `Request.tokens` is what
`transferred_tokens` says: whoever counts the first sampled token sends a page too many whenever
that token opens a page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never


class Selection(StrEnum):
    """How a state type's items follow from a request."""

    PAGES = "pages"  # every page of [0, tokens)
    WINDOW_PAGES = "windowPages"  # the pages of the last window, its start floored to a page
    SLOT = "slot"  # one whole slot of every tensor, all or nothing
    RING_ROWS = "ringRows"  # the last window's rows of the request's ring, in token order
    NOTHING = "nothing"  # explicitly empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an engine knows of one request; a selection reads the fields that it is about."""

    tokens: int  # see transferred_tokens
    page_size: int = 0  # tokens of a page: PAGES, WINDOW_PAGES
    window: int = 0  # tokens that the layers look back: WINDOW_PAGES, RING_ROWS
    slot: int = 0  # the request's slot or ring: SLOT, RING_ROWS
    stride: int = 0  # rows of one ring: RING_ROWS


def transferred_tokens(*, filled: int, prompt: int) -> int:
    """Tokens whose state moves: what prefill has filled, but never the token that it sampled."""
    return min(filled, prompt)


def indices(selection: Selection, request: Request, *, block_tokens: int = 0) -> Sequence[int]:
    """The positions of the request's items, in the order in which they are moved.

    `block_tokens`: a slot that holds only an unfinished block of so many tokens does not exist
    when there is none. Raises ValueError naming the field of the request that is of no use.
    """
    if request.tokens < 0:
        raise ValueError(f"tokens: {request.tokens} is negative")
    match selection:
        case Selection.PAGES:
            return _pages(request, first_token=0)
        case Selection.WINDOW_PAGES:
            start = request.tokens - _positive("window", request.window)
            return _pages(request, first_token=max(0, start))
        case Selection.SLOT:
            unfinished = not block_tokens or request.tokens % block_tokens
            return range(request.slot, request.slot + 1) if unfinished else ()
        case Selection.RING_ROWS:
            return _ring_rows(request)
        case Selection.NOTHING:
            return ()
        case _:
            assert_never(selection)


def _pages(request: Request, *, first_token: int) -> range:
    size = _positive("page_size", request.page_size)
    return range(first_token // size, -(-request.tokens // size))


def _ring_rows(request: Request) -> tuple[int, ...]:
    window, stride = _positive("window", request.window), _positive("stride", request.stride)
    if stride < window:
        raise ValueError(f"stride: a ring of {stride} rows cannot hold a window of {window} tokens")
    positions = range(max(0, request.tokens - window), request.tokens)
    return tuple(request.slot * stride + position % stride for position in positions)


def _positive(field: str, value: int) -> int:
    if value <= 0:
        raise ValueError(f"{field}: {value} is not positive; this state type needs it")
    return value

"""The caches that are moved: per model, which pieces of which size one request owns.

A block is one component: `tensors` of equal shape (a layer's K, its V, its index, its state), each
a pool of pages or slots, of which a request owns `pages`, scattered. The agent sees one component
whose items are the pages, or, where a request owns one slot, that slot's tensors, so that a large
state can be cut in chunks as well; plain NIXL sees `tensors * pages` descriptors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from disagg_transfer.client import Component

WORD_BYTES: Final = 8
_TOKENS: Final = 8192
_WINDOW: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    name: str
    state_type: str
    tensors: int
    pages: int
    piece_bytes: int
    page_size: int  # tokens; 0 for slots

    @property
    def pieces(self) -> int:
        return self.tensors * self.pages

    @property
    def nbytes(self) -> int:
        return self.pieces * self.piece_bytes

    @property
    def pool_pages(self) -> int:
        """Twice what the request owns, so that its pages lie scattered."""
        return 2 * self.pages + 1

    @property
    def slot(self) -> bool:
        return self.page_size == 0

    @property
    def items(self) -> int:
        return self.tensors if self.slot else self.pages

    @property
    def item_bytes(self) -> int:
        return self.nbytes // self.items

    def chunks(self, chunk_bytes: int) -> "Iterator[Items]":
        """As many items at a time as fit, one at least."""
        step = max(1, chunk_bytes // self.item_bytes)
        for first in range(0, self.items, step):
            yield Items(block=self, first=first, count=min(step, self.items - first))

    @property
    def component(self) -> Component:
        return Component(
            name=self.name,
            state_type=self.state_type,
            item_bytes=self.item_bytes,
            layers=self.tensors,
            dtype="uint8",
            page_size=self.page_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """Items [first, first + count) of a block: one chunk."""

    block: Block
    first: int
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.block.item_bytes

    @property
    def final(self) -> bool:
        return self.first + self.count == self.block.items

    def shares(self, count: int) -> "tuple[Items, ...]":
        """Cut in so many equal parts."""
        step = self.count // count
        return tuple(
            Items(block=self.block, first=self.first + number * step, count=step)
            for number in range(count)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    name: str
    blocks: tuple[Block, ...]
    over_paged: float  # times faster than plain NIXL with a descriptor per page

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    @property
    def pieces(self) -> int:
        return sum(block.pieces for block in self.blocks)

    def chunks(self, chunk_bytes: int) -> tuple[Items, ...]:
        return tuple(items for block in self.blocks for items in block.chunks(chunk_bytes))


def deepseek_v32() -> Shape:
    """61 layers of fp8 MLA rows (656 B a token) and of indexer keys (132 B a token)."""
    page = 64
    kv = _paged("kv", "kv", tensors=61, token_bytes=656, tokens=_TOKENS, page=page)
    index = _paged("index", "nsa", tensors=61, token_bytes=132, tokens=_TOKENS, page=page)
    return Shape(name="deepseek-v32-8k-page64", blocks=(kv, index), over_paged=1.0)


def qwen3_next() -> Shape:
    """12 full-attention layers (K and V, 2 heads of 256, bf16), 36 with a state of two tensors."""
    kv = _paged("kv", "kv", tensors=24, token_bytes=1024, tokens=_TOKENS, page=64)
    conv = _slot("mamba.conv", tensors=36, nbytes=49_152)
    temporal = _slot("mamba.temporal", tensors=36, nbytes=2 << 20)
    return Shape(name="qwen3-next-8k-page64", blocks=(kv, conv, temporal), over_paged=1.0)


def gpt_oss(page: int) -> Shape:
    """18 full and 18 sliding-window layers (K and V, 8 heads of 64, bf16)."""
    kv = _paged("kv", "kv", tensors=36, token_bytes=1024, tokens=_TOKENS, page=page)
    swa = _paged("swa", "swa", tensors=36, token_bytes=1024, tokens=_WINDOW, page=page)
    over_paged = 1.0 if page >= 64 else 2.0
    return Shape(name=f"gpt-oss-8k-page{page}", blocks=(kv, swa), over_paged=over_paged)


def crowd() -> Shape:
    """256 MiB in pages of 1 MiB: one large request, or many that own some pages each."""
    kv = _paged("kv", "kv", tensors=16, token_bytes=1024, tokens=256 * 64, page=64)
    return Shape(name="crowd-256m", blocks=(kv,), over_paged=1.0)


def small_state() -> Shape:
    return Shape(
        name="small-64k", blocks=(_slot("mamba", tensors=1, nbytes=64 << 10),), over_paged=1.0
    )


def _paged(
    name: str, state_type: str, *, tensors: int, token_bytes: int, tokens: int, page: int
) -> Block:
    return Block(
        name=name,
        state_type=state_type,
        tensors=tensors,
        pages=-(-tokens // page),
        piece_bytes=token_bytes * page,
        page_size=page,
    )


def _slot(name: str, *, tensors: int, nbytes: int) -> Block:
    return Block(
        name=name, state_type="mamba", tensors=tensors, pages=1, piece_bytes=nbytes, page_size=0
    )

"""An engine's paged memory for one shape, and what stands in it.

Word i of the prefill pool holds a value made of i alone, and every repetition owns other pages: so
a page that is stale, or lies in another's place, is a difference. Gather and scatter are those that
any engine can take from `disagg_transfer.engines`.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch

from disagg_bench.shapes import WORD_BYTES, Block, Items, Shape
from disagg_transfer.engines.pages import Pages

PageTable = np.ndarray[Any, np.dtype[np.int64]]  # what a request owns, as serving engines hold it

_FACTOR: Final = -7046029254386353131  # odd: every word of the pool is another
_CHUNK_WORDS: Final = 4 << 20


class WrongPayloadError(Exception):
    """What arrived is not what was sent."""


class Pool:
    def __init__(self, shape: Shape, *, filled: bool) -> None:
        self.shape = shape
        words = sum(block.tensors * block.pool_pages * _words(block) for block in shape.blocks)
        self.memory = torch.zeros(words, dtype=torch.int64)
        self._starts: dict[str, int] = {}
        self._parts: dict[tuple[str, int, int], Pages] = {}
        start = 0
        for block in shape.blocks:
            self._starts[block.name] = start
            start += block.tensors * block.pool_pages * _words(block)
        if filled:
            for at in range(0, words, _CHUNK_WORDS):
                part = self.memory[at : at + _CHUNK_WORDS]
                part.copy_(_values(torch.arange(at, at + len(part))))

    @property
    def base(self) -> int:
        return self.memory.data_ptr()

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    def start(self, nbytes: int) -> memoryview:
        """The first bytes of the pool, whatever page they are of."""
        words: Any = self.memory.numpy()
        return memoryview(words).cast("B")[:nbytes]

    def gather(self, items: Items, pages: PageTable, out: memoryview) -> None:
        """`pages` are the request's own of the block."""
        part, rows = self._part(items, pages)
        part.gather(rows, out)

    def scatter(self, items: Items, pages: PageTable, payload: memoryview) -> None:
        part, rows = self._part(items, pages)
        part.scatter(rows, payload)

    def _part(self, items: Items, pages: PageTable) -> tuple[Pages, PageTable]:
        """A slot's items are its tensors, another block's the rows of all of them."""
        block, end = items.block, items.first + items.count
        first, last = (items.first, end) if block.slot else (0, block.tensors)
        key = (block.name, first, last)
        if key not in self._parts:
            self._parts[key] = Pages(tuple(self._tensors(block))[first:last])
        return self._parts[key], pages if block.slot else pages[items.first : end]

    def descriptors(self) -> "np.ndarray[tuple[int, int], np.dtype[np.uint64]]":
        """(address, length, device) of every page of the pool, blocks and tensors in order."""
        parts = []
        for block in self.shape.blocks:
            count = block.tensors * block.pool_pages
            rows = np.zeros((count, 3), dtype=np.uint64)
            first = self.base + self._starts[block.name] * WORD_BYTES
            rows[:, 0] = first + np.arange(count) * block.piece_bytes
            rows[:, 1] = block.piece_bytes
            parts.append(rows)
        return np.concatenate(parts)

    def clear(self) -> None:
        """Nothing of an earlier repetition is left to be taken for this one's."""
        self.memory.zero_()

    def check_pages(self, own: dict[str, PageTable], theirs: dict[str, PageTable]) -> None:
        for block in self.shape.blocks:
            words = _words(block)
            offsets = torch.arange(words)
            for number, tensor in enumerate(self._tensors(block)):
                first = self._starts[block.name] + number * block.pool_pages * words
                starts = torch.from_numpy(first + theirs[block.name] * words)
                expected = _values(starts[:, None] + offsets)
                if not torch.equal(tensor[own[block.name]], expected):
                    raise WrongPayloadError(
                        f"{self.shape.name}: tensor {number} of {block.name} is not what was sent"
                    )

    def check_start(self, nbytes: int) -> None:
        for at in range(0, nbytes // WORD_BYTES, _CHUNK_WORDS):
            end = min(at + _CHUNK_WORDS, nbytes // WORD_BYTES)
            if not torch.equal(self.memory[at:end], _values(torch.arange(at, end))):
                raise WrongPayloadError(
                    f"{self.shape.name}: words {at}..{end} are not what was sent"
                )

    def _tensors(self, block: Block) -> Iterator[torch.Tensor]:
        start, words = self._starts[block.name], _words(block)
        for _ in range(block.tensors):
            yield self.memory[start : start + block.pool_pages * words].view(
                block.pool_pages, words
            )
            start += block.pool_pages * words


def draw_pages(shape: Shape, *, side: str, repetition: int) -> dict[str, PageTable]:
    """The pages that a request owns on one side: other ones for every repetition."""
    order = torch.Generator().manual_seed(2 * repetition + (side == "prefill"))
    return {
        block.name: torch.randperm(block.pool_pages, generator=order)[: block.pages].numpy()
        for block in shape.blocks
    }


def page_indices(
    shape: Shape, pages: dict[str, PageTable]
) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    """The rows of `Pool.descriptors` that these pages are."""
    parts, first = [], 0
    for block in shape.blocks:
        tensors = first + np.arange(block.tensors) * block.pool_pages
        parts.append((tensors[:, None] + pages[block.name]).reshape(-1))
        first += block.tensors * block.pool_pages
    return np.concatenate(parts).astype(np.int32)


def _values(indices: torch.Tensor) -> torch.Tensor:
    return (indices + 1) * _FACTOR


def _words(block: Block) -> int:
    return block.piece_bytes // WORD_BYTES

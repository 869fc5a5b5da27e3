"""Between an engine's pool tensors and the arena: gather and scatter of a request's rows.

A chunk lies in the arena as [tensor][item][bytes]; no row is touched in Python. In plain memory each
tensor is one take or one assignment by index, of whole rows: measured hot on one core, a chunk of
8 MB in 61 tensors takes 0.4 ms either way, where index_copy_ takes 0.9 ms and a plain copy 0.3 ms. A
pool on a GPU is copied by index_select and index_copy_ over the widest words that fit, on a stream of
its own, beside the engine's.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from disagg_transfer.engines.shards import Rank, Run, Split, runs

HostRows = np.ndarray[Any, Any]

# Rows of the pool in the order of the items: int64 on the pool's device, or integers of NumPy, which
# small requests to pools in plain memory should have: torch takes 0.1 ms to cut and to unwrap them.
Items = torch.Tensor | HostRows
View = memoryview | torch.Tensor  # arena memory: writable; a tensor is uint8 of one dimension

# Copied, never computed with: the complex type is torch's one word of 16 bytes.
_WORDS: Final = (torch.complex128, torch.int64, torch.int32, torch.int16, torch.uint8)


class Pages:
    """The pool tensors of one component in chunk order, each [rows, ...] and contiguous."""

    def __init__(self, tensors: Sequence[torch.Tensor], *, splits: Sequence[Split] = ()) -> None:
        """`splits`, one for each tensor, are for `scatter_shard` alone.

        Raises ValueError when a tensor is not contiguous or lies on another device than the first.
        """
        for number, tensor in enumerate(tensors):
            if not tensor.is_contiguous() or tensor.device != tensors[0].device:
                raise ValueError(f"pool tensor {number} is not contiguous, or on another device")
        if splits and len(splits) != len(tensors):
            raise ValueError(f"{len(splits)} splits for {len(tensors)} pool tensors")
        self._shapes = tuple(tensor.shape[1:] for tensor in tensors)
        self._rows = tuple(tensor.view(len(tensor), -1).view(torch.uint8) for tensor in tensors)
        self._sizes = tuple(rows.shape[1] for rows in self._rows)
        self._least_rows = min(len(rows) for rows in self._rows)
        self._splits = tuple(splits)
        self._device = tensors[0].device
        self._host = _host(self._rows) if self._device.type == "cpu" else ()
        self._stream = _new_stream(self._device) if self._device.type == "cuda" else None

    @property
    def item_bytes(self) -> int:
        """Bytes of one item over all tensors: what the component registers."""
        return sum(self._sizes)

    def gather(self, items: Items, out: View) -> None:
        """Copy these rows into arena memory, where they are on return: offer it, free the rows.

        Raises ValueError when `out` is not as long as the rows, IndexError or TypeError for items
        that are no rows of the pools.
        """
        if self._in_plain_memory(out):
            index = self._index(items)
            for pool, part in self._parts(out, len(index)):
                np.take(pool, index, out=part, mode="clip")  # any other mode buffers the output
            return
        chosen = self._on_device(items)
        flat = _flat(out, self._sizes, len(chosen))
        with self._beside_the_engine():
            for rows, block in self._pairs(flat, len(chosen)):
                _select(rows, chosen, block)

    def scatter(self, items: Items, payload: View) -> None:
        """Copy arena memory into these rows, where it is on return: give the memory back.

        Raises ValueError when `payload` is not as long as the rows, IndexError or TypeError for
        items that are no rows of the pools.
        """
        if self._in_plain_memory(payload):
            index = self._index(items)
            for pool, part in self._parts(payload, len(index)):
                pool[index] = part
            return
        chosen = self._on_device(items)
        flat = _flat(payload, self._sizes, len(chosen))
        with self._beside_the_engine():
            for rows, block in self._pairs(flat, len(chosen)):
                rows.index_copy_(0, chosen, block.to(self._device, non_blocking=True))

    def scatter_shard(self, items: Items, payload: View, *, source: Rank, target: Rank) -> None:
        """Copy what another rank's payload holds of these rows; a call for each source rank.

        Raises ValueError when a pool is not of the target's size or the payload not the source's.
        """
        if len(self._splits) != len(self._rows):
            raise ValueError("these pool tensors were given no splits: their shards are unknown")
        axes = [
            _axis(shape, split, row_bytes=rows.shape[1], target=target)
            for shape, split, rows in zip(self._shapes, self._splits, self._rows, strict=True)
        ]
        chosen = self._on_device(items)
        with self._beside_the_engine():
            sizes = [axis.item_bytes(source) for axis in axes]
            blocks = _blocks(_flat(payload, sizes, len(chosen)), sizes, len(chosen))
            for rows, axis, block in zip(self._rows, axes, blocks, strict=True):
                there = block.to(self._device, non_blocking=True)
                axis.scatter(rows, chosen, there, source=source, target=target)

    def _in_plain_memory(self, view: View) -> bool:
        return bool(self._host) and (isinstance(view, memoryview) or view.device.type == "cpu")

    def _index(self, items: Items) -> HostRows:
        """NumPy would clip a wrong row, or count it from the end."""
        given = items.numpy() if isinstance(items, torch.Tensor) else items
        index: HostRows = given.astype(np.int64, casting="same_kind", copy=False)
        rows = self._least_rows
        if len(index) and np.maximum.reduce(index.view(np.uint64)) >= rows:  # -1 is huge there
            raise IndexError(f"items {index.min()}..{index.max()} of pools of {rows} rows")
        return index

    def _on_device(self, items: Items) -> torch.Tensor:
        if isinstance(items, torch.Tensor):
            return items
        return torch.tensor(self._index(items), device=self._device)

    def _parts(self, view: View, items: int) -> Iterator[tuple[HostRows, HostRows]]:
        """Each tensor's rows and its part of the chunk, as whole rows.

        Without torch, of which each call takes 50 us where a small request finds nothing cached.
        """
        _check_length(view, self._sizes, items)
        data = np.frombuffer(view, np.uint8) if isinstance(view, memoryview) else view.numpy()
        start = 0
        for rows in self._host:
            end = start + items * rows.itemsize
            yield rows, data[start:end].view(rows.dtype)
            start = end

    def _pairs(self, flat: torch.Tensor, items: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each tensor's rows and its part of the chunk, both in the widest words that fit."""
        for rows, block in zip(self._rows, _blocks(flat, self._sizes, items), strict=True):
            word = _word(rows.shape[1], rows, block)
            yield rows.view(word), block.view(word)

    @contextlib.contextmanager
    def _beside_the_engine(self) -> Iterator[None]:
        """After what the engine has queued, and over at the end of the block."""
        if self._stream is None:
            yield
            return
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # sleeps
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
            done.record(self._stream)
        done.synchronize()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """The split axis of one pool tensor, in bytes: an item is [outer, entries * entry_bytes]."""

    split: Split
    outer: int
    entries: int  # that the target holds
    entry_bytes: int

    def item_bytes(self, source: Rank) -> int:
        entries = self.split.length(source) if self.split.groups else self.entries
        return self.outer * entries * self.entry_bytes

    def scatter(
        self,
        rows: torch.Tensor,
        items: torch.Tensor,
        payload: torch.Tensor,
        *,
        source: Rank,
        target: Rank,
    ) -> None:
        whole = (Run(source=0, target=0, length=self.entries),)
        parts = runs(self.split, source=source, target=target) if self.split.groups else whole
        there = payload.view(len(items), self.outer, self.item_bytes(source) // self.outer)
        here = rows.view(len(rows), self.outer, -1)
        for run in parts:
            taken, put, size = (n * self.entry_bytes for n in (run.source, run.target, run.length))
            word = _word(math.gcd(taken, put, size, here.shape[2], there.shape[2]), rows, payload)
            wide = word.itemsize
            piece = there.view(word).narrow(2, taken // wide, size // wide)
            here.view(word).narrow(2, put // wide, size // wide).index_copy_(0, items, piece)


def _axis(shape: torch.Size, split: Split, *, row_bytes: int, target: Rank) -> _Axis:
    if not split.groups:
        return _Axis(split=split, outer=1, entries=1, entry_bytes=row_bytes)
    entries, outer = shape[split.axis], math.prod(shape[: split.axis])
    if entries != split.length(target):
        raise ValueError(
            f"pool axis {split.axis} has {entries} entries, rank {target.number} of {target.of} "
            f"holds {split.length(target)}"
        )
    return _Axis(
        split=split, outer=outer, entries=entries, entry_bytes=row_bytes // outer // entries
    )


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _flat(view: View, row_bytes: Sequence[int], items: int) -> torch.Tensor:
    """The chunk's bytes."""
    _check_length(view, row_bytes, items)
    if isinstance(view, memoryview):
        # torch makes no tensor of an empty buffer
        return torch.frombuffer(view, dtype=torch.uint8) if items else torch.empty(0).byte()
    return view


def _check_length(view: View, row_bytes: Sequence[int], items: int) -> None:
    if view.nbytes != items * sum(row_bytes):
        raise ValueError(
            f"{items} items of {sum(row_bytes)} bytes are {items * sum(row_bytes)}, the arena view "
            f"has {view.nbytes}"
        )


def _blocks(flat: torch.Tensor, row_bytes: Sequence[int], items: int) -> Sequence[torch.Tensor]:
    """The tensors' parts of a chunk, [items, bytes] each."""
    ends = itertools.accumulate(items * size for size in row_bytes)
    return [
        flat[end - items * size : end].view(items, size)
        for end, size in zip(ends, row_bytes, strict=True)
    ]


def _host(pools: Sequence[torch.Tensor]) -> tuple[HostRows, ...]:
    """The pools as arrays of rows; none where a row is empty, which NumPy has no type for."""
    if not all(rows.shape[1] for rows in pools):
        return ()
    return tuple(rows.numpy().view(f"V{rows.shape[1]}")[:, 0] for rows in pools)


def _select(rows: torch.Tensor, items: torch.Tensor, out: torch.Tensor) -> None:
    if rows.device == out.device:
        torch.index_select(rows, 0, items, out=out)
    else:
        out.copy_(rows.index_select(0, items), non_blocking=True)


def _word(grain: int, *tensors: torch.Tensor) -> torch.dtype:
    """The widest word that `grain` bytes are made of and that every tensor is aligned to."""
    places = [tensor.data_ptr() for tensor in tensors]
    return next(word for word in _WORDS if not any(n % word.itemsize for n in (grain, *places)))

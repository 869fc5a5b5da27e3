"""What crosses between an engine and the client library."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One component of the model's cache; a model may have several of one state type."""

    name: str  # unique, e.g. "kv", "mamba.conv", "swa"
    state_type: str  # a registry name or alias
    item_bytes: int  # one item: a page of all its layers, or one whole slot
    layers: int
    dtype: str
    page_size: int  # tokens per item; 0 for slot types


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaBytes:
    """A stretch of the arena, wherever that is."""

    view: memoryview  # empty where the arena is on a GPU
    on_gpu: Any = None  # a tensor of bytes there, else None

    @property
    def memory(self) -> Any:
        """What Pages takes, wherever the arena is."""
        return self.view if self.on_gpu is None else self.on_gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent(ArenaBytes):
    """Arena memory for one chunk. Write to it, offer it, then never touch it again."""

    extent: int
    room: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(ArenaBytes):
    """Items [first, first + items) of a component, laid out [tensor][item][bytes].

    `view` is valid until the next chunk is asked for. The first `skip` items are below `have`.
    `source` is the prefill rank that it is of; with another tensor parallelism there than here an
    item is what that rank holds of it.
    """

    component: str
    source: int
    first: int
    items: int
    skip: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One component, arrived whole: its chunks' bytes one after another, a copy of its own; those
    of several prefill ranks in the order of the ranks.

    With more than one chunk each is laid out [tensor][item][bytes] by itself.
    """

    items: int
    chunks: tuple[Chunk, ...]
    view: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    payloads: Mapping[str, Payload]
    aux: bytes
    prefill_pod: str
    prefill_ranks: int  # tensor parallelism there

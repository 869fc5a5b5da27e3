"""The cache that the campaign's requests carry, and what its bytes are.

Bytes follow from seed, room and component, so either side can make them and neither has to ask.
"""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from disagg_transfer.client import Component

MODEL: Final = "faults"
PAGE_SIZE: Final = 16


def _component(name: str, state_type: str, item_bytes: int) -> Component:
    slot = state_type in {"mamba", "none"}
    return Component(
        name=name,
        state_type=state_type,
        item_bytes=item_bytes,
        layers=2,
        dtype="float32",
        page_size=0 if slot else PAGE_SIZE,
    )


COMPONENTS: Final = (
    _component("kv", "kv", 4096),
    _component("mamba.conv", "mamba", 12_345),
    _component("mamba.temporal", "mamba", 70_000),
    _component("none", "none", 0),
    _component("nsa", "nsa", 512),
    _component("swa", "swa", 2048),
)
NAMES: Final = tuple(component.name for component in COMPONENTS)
STATE_TYPES: Final = {component.name: component.state_type for component in COMPONENTS}
ITEM_BYTES: Final = {component.name: component.item_bytes for component in COMPONENTS}


def nbytes(items: Mapping[str, int]) -> int:
    return sum(ITEM_BYTES[name] * count for name, count in items.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one offer brings: items [first, first + items) of a component."""

    component: str
    first: int
    items: int
    final: bool


def cut(
    items: Mapping[str, int], *, chunk_bytes: int, have: Mapping[str, int], room: int
) -> tuple[Piece, ...]:
    """A request's chunks above `have`: each component's in order, the components mixed."""
    queues = [_pieces(name, count, chunk_bytes, have.get(name, 0)) for name, count in items.items()]
    dice = random.Random(room)  # noqa: S311  (the same room is cut in the same way)
    mixed: list[Piece] = []
    while queues:
        queue = dice.choice(queues)
        mixed.append(queue.pop(0))
        if not queue:
            queues.remove(queue)
    return tuple(mixed)


def _pieces(name: str, total: int, chunk_bytes: int, have: int) -> list[Piece]:
    step = max(1, chunk_bytes // ITEM_BYTES[name]) if ITEM_BYTES[name] else max(1, total)
    starts = range(have, total, step) if have < total else (have,)
    return [
        Piece(
            component=name,
            first=first,
            items=min(step, total - first),
            final=first + step >= total,
        )
        for first in starts
    ]


def content(*, seed: int, room: int, component: str, items: int) -> bytes:
    """The payload of one component: every item differs from every other one's, of any request."""
    name = f"{seed}/{room}/{component}".encode()
    return hashlib.shake_128(name).digest(items * ITEM_BYTES[component])

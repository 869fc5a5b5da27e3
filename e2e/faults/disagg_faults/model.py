"""The cache that the campaign's requests carry, and what its bytes are.

Bytes follow from seed, room and component, so either side can make them and neither has to ask.
"""

import hashlib
from collections.abc import Mapping
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


def content(*, seed: int, room: int, component: str, items: int) -> bytes:
    """The payload of one component: every item differs from every other one's, of any request."""
    name = f"{seed}/{room}/{component}".encode()
    return hashlib.shake_128(name).digest(items * ITEM_BYTES[component])

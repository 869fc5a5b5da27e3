"""What a model's cache is made of, told from the classes of its cache layers.

A field is one tensor of a layer. Fields of all layers that belong together form a component; an
item of a component is one page of tokens of all its fields, or (without a token axis) one whole
slot. Nothing here knows a model by name, so a model never seen before works as long as its cache
is built of these layer classes; any other class is refused rather than skipped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import cache_utils

from disagg_engine.errors import UnsupportedCacheError

# Pages are moved as 64-bit words: as bytes the scatter takes six times as long.
WORD_BYTES = 8
# Longer than any convolution's kernel; shapes do not depend on it otherwise.
PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldKind:
    """One tensor that a layer class keeps. `token_axis` is None for a whole-state slot."""

    component: str
    state_type: str
    attribute: str
    token_axis: int | None


def _tokens(component: str, attribute: str, *, axis: int = 2) -> FieldKind:
    return FieldKind(
        component=component, state_type=component, attribute=attribute, token_axis=axis
    )


def _slot(component: str, attribute: str) -> FieldKind:
    return FieldKind(component=component, state_type="mamba", attribute=attribute, token_axis=None)


FULL = (_tokens("kv", "keys"), _tokens("kv", "values"))
SLIDING = (_tokens("swa", "keys"), _tokens("swa", "values"))
# The two states of a layer are components of their own: one may be lost without the other.
LINEAR = (_slot("mamba.conv", "conv_states"), _slot("mamba.recurrent", "recurrent_states"))

FIELDS: Mapping[type, tuple[FieldKind, ...]] = {
    cache_utils.DummyLayer: (),
    cache_utils.DynamicLayer: FULL,
    cache_utils.DynamicSlidingWindowLayer: SLIDING,
    cache_utils.DynamicIndexedLayer: (*FULL, _tokens("nsa", "indexer_keys", axis=1)),
    cache_utils.LinearAttentionLayer: LINEAR,
    cache_utils.LinearAttentionAndFullAttentionLayer: (*LINEAR, *FULL),
    cache_utils.LinearAttentionAndSlidingWindowAttentionLayer: (*LINEAR, *SLIDING),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One tensor of one layer of this model; `shape` is without batch and tokens."""

    kind: FieldKind
    layer: int
    state: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of one token, or of the whole slot."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentLayout:
    name: str
    state_type: str
    page_size: int  # tokens per item; 0 for slots
    window: int | None  # positions kept by a sliding window: its size less one
    fields: tuple[Field, ...]

    @property
    def item_bytes(self) -> int:
        plain = sum(field.nbytes for field in self.fields) * max(self.page_size, 1)
        return -(-plain // WORD_BYTES) * WORD_BYTES

    @property
    def layers(self) -> int:
        return len({field.layer for field in self.fields})

    @property
    def dtype(self) -> str:
        names = {str(field.dtype).removeprefix("torch.") for field in self.fields}
        return "+".join(sorted(names))

    def tokens(self, prompt_tokens: int) -> int:
        """Tokens kept of a prompt."""
        return prompt_tokens if self.window is None else min(prompt_tokens, self.window)

    def items(self, prompt_tokens: int) -> int:
        if not self.page_size:
            return 1
        return -(-self.tokens(prompt_tokens) // self.page_size)


def probe_layout(module: Any, *, page_size: int) -> tuple[ComponentLayout, ...]:
    """Run a short prompt and read the shapes off the cache it leaves."""
    cache = cache_utils.DynamicCache(config=module.config)
    prompt = torch.zeros((1, PROBE_TOKENS), dtype=torch.long)
    with torch.inference_mode():
        module(input_ids=prompt, past_key_values=cache, use_cache=True)
    return describe_cache(cache.layers, page_size=page_size)


def describe_cache(layers: Sequence[Any], *, page_size: int) -> tuple[ComponentLayout, ...]:
    """Components in the order in which the layers name them."""
    grouped: dict[tuple[str, int | None], list[Field]] = {}
    for index, layer in enumerate(layers):
        window = _window(layer)
        for field in _layer_fields(index, layer):
            kept = window if field.kind.component == "swa" else None
            grouped.setdefault((field.kind.component, kept), []).append(field)
    return tuple(
        _component(fields, window, page_size=page_size, alone=_is_alone(grouped, name))
        for (name, window), fields in grouped.items()
    )


def _is_alone(grouped: Mapping[tuple[str, int | None], object], name: str) -> bool:
    return sum(1 for other, _ in grouped if other == name) == 1


def _component(
    fields: Sequence[Field], window: int | None, *, page_size: int, alone: bool
) -> ComponentLayout:
    kind = fields[0].kind
    return ComponentLayout(
        # Layers with windows of several sizes keep different numbers of pages.
        name=kind.component if alone else f"{kind.component}.{window}",
        state_type=kind.state_type,
        page_size=0 if kind.token_axis is None else page_size,
        window=window,
        fields=tuple(fields),
    )


def _window(layer: Any) -> int | None:
    size = getattr(layer, "sliding_window", None)
    return None if size is None else int(size) - 1


def _layer_fields(index: int, layer: Any) -> Iterator[Field]:
    # The exact class: a subclass may keep tensors that its parent does not.
    kinds = FIELDS.get(type(layer))
    if kinds is None:
        known = ", ".join(sorted(cls.__name__ for cls in FIELDS))
        raise UnsupportedCacheError(
            f"cache layer {index} is a {type(layer).__name__}; known layer classes: {known}."
            " Describe its tensors in disagg_engine/layout.py before serving this model"
        )
    if getattr(layer, "indexer_position_ids", None) is not None:
        raise UnsupportedCacheError(
            f"cache layer {index} keeps indexer_position_ids, which no component carries yet"
        )
    for kind in kinds:
        for state, tensor in layer_tensors(layer, kind):
            yield _field(index, kind, state, tensor)


def layer_tensors(layer: Any, kind: FieldKind) -> Iterator[tuple[int, torch.Tensor]]:
    """A layer keeps one tensor per attribute, a linear-attention layer one per state."""
    held = getattr(layer, kind.attribute)
    states = held.items() if isinstance(held, dict) else [(0, held)]
    for state, tensor in states:
        if tensor is not None:
            yield state, tensor


def _field(layer: int, kind: FieldKind, state: int, tensor: torch.Tensor) -> Field:
    shape = list(tensor.shape)
    if kind.token_axis is not None:
        del shape[kind.token_axis]
    return Field(kind=kind, layer=layer, state=state, shape=tuple(shape[1:]), dtype=tensor.dtype)

"""Between the dense cache of one request, as the model keeps it, and its pages in the pools."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import cache_utils

from disagg_engine.layout import ComponentLayout, Field, layer_tensors
from disagg_engine.pools import PagePool, Pages, PoolSet


def store_cache(
    cache: Any, pools: PoolSet, pages: Mapping[str, Pages], *, prompt_tokens: int
) -> None:
    """Write every field of the cache into the request's pages."""
    for layout in pools.layouts:
        for field in layout.fields:
            tensor = dict(layer_tensors(cache.layers[field.layer], field.kind))[field.state]
            rows = _to_rows(tensor, field, layout, prompt_tokens=prompt_tokens)
            pools[layout.name].column(field).index_copy_(0, pages[layout.name], rows)


def rebuild_cache(
    config: Any, pools: PoolSet, pages: Mapping[str, Pages], *, prompt_tokens: int
) -> Any:
    """A cache such as prefill would have left, from the request's pages."""
    cache = cache_utils.DynamicCache(config=config)
    for layout in pools.layouts:
        pool = pools[layout.name]
        for field in layout.fields:
            tensor = _from_rows(pool, pages[layout.name], field, prompt_tokens=prompt_tokens)
            _install(cache.layers[field.layer], field, tensor, prompt_tokens=prompt_tokens)
    return cache


def _to_rows(
    tensor: torch.Tensor, field: Field, layout: ComponentLayout, *, prompt_tokens: int
) -> torch.Tensor:
    """[pages, values of a page]; the last page is filled up with zeros."""
    axis = field.kind.token_axis
    if axis is None:
        return tensor.reshape(1, -1)
    by_token = tensor.movedim(axis, 0).flatten(1)
    tokens, pages = layout.tokens(prompt_tokens), layout.items(prompt_tokens)
    if len(by_token) != tokens:
        raise ValueError(
            f"layer {field.layer} {field.kind.attribute} holds {len(by_token)} tokens of a prompt"
            f" of {prompt_tokens}, expected {tokens}"
        )
    filled = by_token.new_zeros((pages * layout.page_size, by_token.shape[1]))
    filled[:tokens] = by_token
    return filled.view(pages, -1)


def _from_rows(pool: PagePool, pages: Pages, field: Field, *, prompt_tokens: int) -> torch.Tensor:
    rows = pool.column(field).index_select(0, pages)
    axis = field.kind.token_axis
    if axis is None:
        return rows.view(1, *field.shape)
    by_token = rows.view(-1, 1, *field.shape)[: pool.layout.tokens(prompt_tokens)]
    return by_token.movedim(0, axis).contiguous()


def _install(layer: Any, field: Field, tensor: torch.Tensor, *, prompt_tokens: int) -> None:
    """Set one tensor, and the flags that the layer would have set when it was filled."""
    match field.kind.attribute:
        case "keys" | "values" as name:
            if not layer.is_initialized:
                layer.lazy_initialization(tensor, tensor)
            setattr(layer, name, tensor)
            if isinstance(layer, cache_utils.DynamicSlidingWindowLayer):
                layer.cumulative_length = prompt_tokens
        case "indexer_keys":
            layer.lazy_initialization_indexer(tensor)
            layer.indexer_keys = tensor
        case "conv_states":
            layer.lazy_initialization(conv_states=tensor, state_idx=field.state)
            layer.conv_states[field.state].copy_(tensor)
            layer.has_previous_state[field.state] = True
        case "recurrent_states":
            layer.lazy_initialization(recurrent_states=tensor, state_idx=field.state)
            layer.recurrent_states[field.state].copy_(tensor)
        case other:
            raise ValueError(f"no rule to restore {other!r} of a {type(layer).__name__}")

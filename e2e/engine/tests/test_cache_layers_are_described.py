"""The adapter knows layer classes; what it does not know it refuses by name."""

import pytest
import torch
from transformers import cache_utils

from disagg_engine.errors import UnsupportedCacheError
from disagg_engine.layout import describe_cache

STATES = torch.ones(1, 2, 3, 4)


def full():
    layer = cache_utils.DynamicLayer()
    layer.update(STATES, STATES)
    return layer


def sliding(window):
    layer = cache_utils.DynamicSlidingWindowLayer(sliding_window=window)
    layer.update(STATES, STATES)
    return layer


def test_a_layer_class_never_seen_is_refused_by_name():
    class NewLayer(cache_utils.DynamicLayer):
        pass

    with pytest.raises(UnsupportedCacheError, match=r"layer 1 is a NewLayer; known .*DynamicLayer"):
        describe_cache([full(), NewLayer()], page_size=4)


def test_indexer_positions_are_refused_rather_than_lost():
    layer = cache_utils.DynamicIndexedLayer()
    layer.update(STATES, STATES)
    layer.indexer_position_ids = torch.zeros(1)
    with pytest.raises(UnsupportedCacheError, match="indexer_position_ids"):
        describe_cache([layer], page_size=4)


def test_windows_of_two_sizes_are_two_components_of_one_type():
    found = describe_cache([sliding(9), full(), sliding(5), sliding(9)], page_size=4)
    assert [(part.name, part.state_type, part.layers) for part in found] == [
        ("swa.8", "swa", 2),
        ("kv", "kv", 1),
        ("swa.4", "swa", 1),
    ]
    assert [part.items(100) for part in found] == [2, 25, 1]


def test_a_hybrid_layer_is_in_all_its_components():
    layer = cache_utils.LinearAttentionAndFullAttentionLayer()
    layer.update(STATES, STATES)
    layer.update_conv_state(torch.ones(1, 6, 4))
    layer.update_recurrent_state(torch.ones(1, 2, 3))
    found = {part.name: part for part in describe_cache([layer], page_size=4)}
    assert set(found) == {"mamba.conv", "mamba.recurrent", "kv"}
    assert found["mamba.conv"].item_bytes == 6 * 4 * 4
    assert found["kv"].item_bytes == 2 * 4 * (2 * 4) * 4


def test_a_dummy_layer_holds_nothing():
    assert describe_cache([cache_utils.DummyLayer()], page_size=4) == ()

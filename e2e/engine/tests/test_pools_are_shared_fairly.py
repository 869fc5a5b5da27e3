"""Requests take pages of every component or of none, and always give them back."""

import threading

import pytest
import torch

from disagg_engine.errors import BadRequestError, OverloadedError
from disagg_engine.layout import ComponentLayout, Field, FieldKind
from disagg_engine.pools import PoolSet

PAGE = 4


def layout(name, *, page_size, dtypes=(torch.float32,)):
    axis = 2 if page_size else None
    kind = FieldKind(component=name, state_type=name, attribute="keys", token_axis=axis)
    fields = tuple(
        Field(kind=kind, layer=i, state=0, shape=(1, 3), dtype=dtype)
        for i, dtype in enumerate(dtypes)
    )
    return ComponentLayout(
        name=name, state_type=name, page_size=page_size, window=None, fields=fields
    )


@pytest.fixture
def pools():
    parts = [layout("kv", page_size=PAGE), layout("mamba", page_size=0)]
    return PoolSet(parts, max_pages=4, max_slots=2)


def test_pages_come_back_after_an_error(pools):
    with pytest.raises(RuntimeError), pools.hold(PAGE * 4, timeout_s=0):
        raise RuntimeError
    assert (pools["kv"].free, pools["mamba"].free) == (4, 2)


def test_no_page_is_held_twice(pools):
    with pools.hold(PAGE * 2, timeout_s=0) as one, pools.hold(PAGE * 2, timeout_s=0) as other:
        taken = torch.cat([one["kv"], other["kv"]])
    assert sorted(taken.tolist()) == [0, 1, 2, 3]


def test_a_full_pool_is_named_after_the_wait(pools):
    with (
        pools.hold(PAGE * 4, timeout_s=0),
        pytest.raises(OverloadedError, match="pages of kv"),
        pools.hold(1, timeout_s=0.01),
    ):
        pass
    assert pools["mamba"].free == 2


def test_a_waiting_request_gets_pages_given_back(pools):
    got = threading.Event()

    def wait():
        with pools.hold(PAGE, timeout_s=5):
            got.set()

    with pools.hold(PAGE * 4, timeout_s=0):
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not got.is_set()
    waiter.join(5)
    assert got.is_set()


def test_a_prompt_larger_than_the_pool_is_refused_at_once(pools):
    pools.check_fits(PAGE * 4)
    with pytest.raises(BadRequestError, match="needs 5 pages of kv, the pool has 4"):
        pools.check_fits(PAGE * 4 + 1)


def test_an_arena_view_of_another_size_is_refused(pools):
    with (
        pools.hold(PAGE, timeout_s=0) as pages,
        pytest.raises(ValueError, match=r"1 items of .* view has 8"),
    ):
        pools["kv"].gather(pages["kv"], memoryview(bytearray(8)))


def test_fields_of_several_dtypes_share_an_item():
    dtypes = (torch.bfloat16, torch.float32)
    pools = PoolSet([layout("kv", page_size=PAGE, dtypes=dtypes)], max_pages=2, max_slots=1)
    half, full = (pools["kv"].column(field) for field in pools.layouts[0].fields)
    half.fill_(1.5)
    full.fill_(2.5)
    assert (half == 1.5).all()
    assert pools.layouts[0].dtype == "bfloat16+float32"


def test_items_are_whole_words():
    assert layout("x", page_size=0, dtypes=(torch.bfloat16,)).item_bytes == 8

"""Gather, scatter and reslicing of an engine's pools, against plain indexing."""

import mmap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disagg_transfer.engines.pages import Pages
from disagg_transfer.engines.shards import Group, Rank, Split, reslice, runs, shard
from disagg_transfer.errors import ReshardingError

ALONE = Rank(number=0, of=1)
DTYPES = (torch.bfloat16, torch.float32, torch.uint8, torch.int64, torch.float8_e4m3fn)


def arena(nbytes):
    """Writable shared memory, as the client maps it."""
    return memoryview(mmap.mmap(-1, max(nbytes, 1)))[:nbytes]


def numbered(shape, dtype):
    """Every byte of it random, so that a misplaced one is a difference."""
    count = int(torch.Size(shape).numel()) * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8).view(dtype).view(shape)


def same(one, other):
    return torch.equal(as_bytes(one), as_bytes(other))


def as_bytes(tensor):
    return tensor.reshape(-1).contiguous().view(torch.uint8)


# -- pages


@pytest.mark.parametrize(
    ("shapes", "dtypes"),
    [
        ([(16, 2, 8), (16, 2, 8)], [torch.bfloat16, torch.bfloat16]),  # K and V
        ([(64, 656), (64, 132)], [torch.uint8, torch.uint8]),  # rows of 8 and of 4 bytes' words
        ([(3,), (5, 3)], [torch.uint8, torch.bfloat16]),  # odd bytes; the second starts odd
        ([()], [torch.float32]),
    ],
)
def test_what_is_gathered_lies_by_tensor_then_item_and_scatters_back(shapes, dtypes):
    pools = [numbered((9, *shape), d) for shape, d in zip(shapes, dtypes, strict=True)]
    items = torch.tensor([7, 0, 3])
    pages = Pages(pools)
    out = arena(len(items) * pages.item_bytes)
    pages.gather(items, out)
    expected = b"".join(
        pool[items].contiguous().view(torch.uint8).numpy().tobytes() for pool in pools
    )
    assert bytes(out) == expected
    others = [torch.zeros_like(pool) for pool in pools]
    there = torch.tensor([1, 8, 2])
    Pages(others).scatter(there, out)
    for pool, other in zip(pools, others, strict=True):
        assert same(other[there], pool[items])
        untouched = [row for row in range(9) if row not in (1, 8, 2)]
        assert same(other[untouched], torch.zeros_like(other[untouched]))


def test_a_chunk_is_a_contiguous_part_of_the_request():
    pool = numbered((20, 48), torch.uint8)
    items = torch.randperm(20)[:10]
    other = torch.zeros_like(pool)
    for first in range(0, 10, 4):
        part = items[first : first + 4]
        out = arena(len(part) * 48)
        Pages([pool]).gather(part, out)
        Pages([other]).scatter(part, out)
    assert same(other[items], pool[items])


def test_no_items_are_no_bytes():
    pool = numbered((4, 8), torch.uint8)
    before = pool.clone()
    nothing = torch.empty(0, dtype=torch.int64)
    Pages([pool]).gather(nothing, arena(0))
    Pages([pool]).scatter(nothing, arena(0))
    assert same(pool, before)


def test_an_arena_view_of_another_length_is_refused_with_both():
    pages = Pages([numbered((4, 8), torch.uint8)])
    for copy in (pages.gather, pages.scatter):
        with pytest.raises(ValueError, match="2 items of 8 bytes are 16, the arena view has 15"):
            copy(torch.tensor([0, 1]), arena(15))


@pytest.mark.parametrize("item", [-1, 4])
def test_a_row_that_the_pool_does_not_have_is_refused(item):
    pool = numbered((4, 8), torch.uint8)
    before, out = pool.clone(), arena(16)
    for copy in (Pages([pool]).gather, Pages([pool]).scatter):
        with pytest.raises(IndexError, match="of pools of 4 rows"):
            copy(torch.tensor([0, item]), out)
    assert same(pool, before)
    assert bytes(out) == bytes(16)


def test_a_pool_that_is_not_contiguous_is_refused_by_number():
    whole = numbered((4, 8), torch.uint8)
    with pytest.raises(ValueError, match="pool tensor 1 is not contiguous"):
        Pages([whole, whole[:, :4]])
    with pytest.raises(ValueError, match="1 splits for 2 pool tensors"):
        Pages([whole, whole], splits=[Split()])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32])
def test_page_tables_of_numpy_are_taken_whatever_their_integers(dtype):
    pool = numbered((9, 8), torch.uint8)
    other, table = torch.zeros_like(pool), np.array([7, 0, 3, 1], dtype=dtype)
    table.flags.writeable = False
    out, on_device = arena(32), torch.zeros(32, dtype=torch.uint8)
    Pages([pool]).gather(table, out)
    Pages([other]).scatter(table, out)
    assert same(other[[7, 0, 3, 1]], pool[[7, 0, 3, 1]])
    Pages([pool]).gather(table, on_device)
    assert bytes(on_device.numpy()) == bytes(out)
    whole = Pages([torch.zeros_like(pool)], splits=[Split()])
    whole.scatter_shard(table, out, source=Rank(number=0, of=1), target=Rank(number=0, of=1))


@pytest.mark.parametrize("table", [np.array([0.0, 1.0]), torch.tensor([0.0, 1.0])])
def test_a_table_of_no_integers_is_refused(table):
    pages = Pages([numbered((4, 8), torch.uint8)])
    for copy in (pages.gather, pages.scatter):
        with pytest.raises(TypeError, match="float"):
            copy(table, arena(16))


def test_an_arena_on_the_pool_s_own_device_is_used_as_it_is():
    pool, items = numbered((6, 40), torch.uint8), torch.tensor([5, 2])
    out = torch.zeros(80, dtype=torch.uint8)
    Pages([pool]).gather(items, out)
    assert same(out.view(2, 40), pool[items])


# -- shards


def degrees(heads):
    return [n for n in (1, 2, 3, 4, 6, 8, 16) if heads % n == 0 or n % heads == 0]


@st.composite
def groups(draw):
    """Groups that some common degrees share out, and two of those degrees."""
    found = draw(
        st.lists(
            st.builds(Group, heads=st.sampled_from([1, 2, 4, 8, 12]), width=st.integers(1, 5)),
            min_size=1,
            max_size=3,
        )
    )
    common = sorted(set.intersection(*(set(degrees(group.heads)) for group in found)))
    return tuple(found), draw(st.sampled_from(common)), draw(st.sampled_from(common))


@settings(max_examples=150)
@given(
    drawn=groups(),
    outer=st.integers(1, 3),
    inner=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_resharding_what_one_parallelism_holds_is_what_the_other_holds(
    drawn, outer, inner, dtype, data
):
    """Whatever the groups: shard by A, reslice, scatter == shard by B of the whole state."""
    found, prefill, decode = drawn
    split = Split(axis=1, groups=found)
    rows, length = 5, split.length(ALONE)
    full = numbered((rows, outer, length, inner), dtype)
    target = Rank(number=data.draw(st.integers(0, decode - 1)), of=decode)
    wanted = shard(full, split, rank=target)
    items = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), unique=True, min_size=1)))
    pool, dense = torch.zeros_like(wanted), torch.zeros_like(wanted)
    for number in range(prefill):
        source = Rank(number=number, of=prefill)
        held = shard(full, split, rank=source)
        reslice(held, dense, split, source=source, target=target)
        sender, payload = Pages([held]), arena(len(items) * held[0].nbytes)
        sender.gather(items, payload)
        Pages([pool], splits=[split]).scatter_shard(items, payload, source=source, target=target)
    assert same(dense, wanted)
    assert same(pool[items], wanted[items])
    untouched = [row for row in range(rows) if row not in items]
    assert not as_bytes(pool[untouched]).any()


@given(drawn=groups(), data=st.data())
def test_the_sources_of_a_rank_give_every_entry_and_none_twice_unless_they_hold_the_same(
    drawn, data
):
    found, prefill, decode = drawn
    split = Split(groups=found)
    target = Rank(number=data.draw(st.integers(0, decode - 1)), of=decode)
    times = torch.zeros(split.length(target), dtype=torch.int64)
    for number in range(prefill):
        for run in runs(split, source=Rank(number=number, of=prefill), target=target):
            times[run.target : run.target + run.length] += 1
    assert times.min() >= 1
    if all(group.heads % prefill == 0 for group in found):
        assert times.max() == 1


def test_a_gated_delta_net_s_convolution_is_three_blocks_and_not_one_slice():
    """Qwen3-Next: q and k of 16 heads, v of 32, 128 wide; TP2 -> TP4, rank 1."""
    conv = Split(
        groups=(Group(heads=16, width=128), Group(heads=16, width=128), Group(heads=32, width=128))
    )
    full = numbered((1, 8192, 3), torch.bfloat16)
    q, k, v = full.split([2048, 2048, 4096], dim=1)
    source, target = Rank(number=0, of=2), Rank(number=1, of=4)
    held = torch.cat([q[:, :1024], k[:, :1024], v[:, :2048]], dim=1)
    assert same(shard(full, conv, rank=source), held)
    out = torch.zeros(1, 2048, 3, dtype=torch.bfloat16)
    reslice(held, out, conv, source=source, target=target)
    assert same(out, torch.cat([q[:, 512:1024], k[:, 512:1024], v[:, 1024:2048]], dim=1))
    assert not same(out, held[:, 2048:])


def test_heads_that_ranks_outnumber_are_held_by_neighbors():
    group = Group(heads=2)
    assert [group.held(Rank(number=n, of=8))[0] for n in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_several_tensors_of_one_item_are_each_split_their_own_way():
    """A recurrent layer's slot: the convolution by groups, the state by heads, a flag whole."""
    conv = Split(axis=0, groups=(Group(heads=2, width=3), Group(heads=4, width=3)))
    state, flag = Split(axis=0, groups=(Group(heads=4),)), Split()
    splits = (conv, state, flag)
    whole = [
        numbered((4, 18, 3), torch.bfloat16),
        numbered((4, 4, 8, 8), torch.float32),
        numbered((4, 7), torch.uint8),
    ]
    target, items = Rank(number=0, of=1), torch.tensor([2])
    pools = [torch.zeros_like(tensor) for tensor in whole]
    for number in range(2):
        source = Rank(number=number, of=2)
        held = [shard(t, s, rank=source) for t, s in zip(whole, splits, strict=True)]
        sender = Pages(held)
        payload = arena(sender.item_bytes)
        sender.gather(items, payload)
        Pages(pools, splits=splits).scatter_shard(items, payload, source=source, target=target)
    for pool, tensor in zip(pools, whole, strict=True):
        assert same(pool[2], tensor[2])
        assert not as_bytes(pool[[0, 1, 3]]).any()


@pytest.mark.parametrize(("heads", "ranks"), [(6, 4), (3, 2), (8, 12)])
def test_heads_that_cannot_be_shared_out_are_refused_with_both_numbers(heads, ranks):
    with pytest.raises(ReshardingError, match=f"{heads} heads .* {ranks} ranks"):
        Group(heads=heads).held(Rank(number=0, of=ranks))


def test_a_tensor_of_another_rank_s_size_is_refused():
    split, two = Split(groups=(Group(heads=4),)), Rank(number=0, of=2)
    with pytest.raises(ValueError, match="axis 0 has 3 entries, rank 0 of 2 holds 2"):
        reslice(torch.zeros(1, 3), torch.zeros(1, 4), split, source=two, target=ALONE)
    with pytest.raises(ValueError, match="axis 0 has 3 entries, its groups 4"):
        shard(torch.zeros(1, 3), split, rank=two)
    pages = Pages([torch.zeros(1, 3)], splits=[split])
    with pytest.raises(ValueError, match="pool axis 0 has 3 entries, rank 0 of 1 holds 4"):
        pages.scatter_shard(torch.tensor([0]), arena(8), source=two, target=ALONE)
    with pytest.raises(ValueError, match="no splits"):
        Pages([torch.zeros(1, 4)]).scatter_shard(
            torch.tensor([0]), arena(8), source=two, target=ALONE
        )
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        Rank(number=2, of=2)

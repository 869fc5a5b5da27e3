"""Pure: which prefill ranks hold what a decode rank needs, whatever the two counts are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_transfer.ranks import divisible, partners, sources

COUNTS = st.integers(1, 16)


@given(one=COUNTS, ratio=COUNTS, decode_is_larger=st.booleans())
def test_every_head_of_a_decode_rank_comes_once_and_from_whom_has_it(one, ratio, decode_is_larger):
    prefill, decode = (one, one * ratio) if decode_is_larger else (one * ratio, one)
    heads = list(range(max(prefill, decode)))
    held = [heads[i * len(heads) // prefill :][: len(heads) // prefill] for i in range(prefill)]
    for rank in range(decode):
        got = []
        for source in sources(rank, decode_ranks=decode, prefill_ranks=prefill):
            size = len(held[source.rank]) // source.parts
            got += held[source.rank][source.part * size :][:size]
        assert got == heads[rank * len(heads) // decode :][: len(heads) // decode]


@given(one=COUNTS, ratio=COUNTS, decode_is_larger=st.booleans())
def test_a_shard_has_as_many_readers_as_it_says(one, ratio, decode_is_larger):
    prefill, decode = (one, one * ratio) if decode_is_larger else (one * ratio, one)
    readers = [0] * prefill
    every = [
        source
        for rank in range(decode)
        for source in sources(rank, decode_ranks=decode, prefill_ranks=prefill)
    ]
    for source in every:
        readers[source.rank] += 1
    assert all(source.readers == readers[source.rank] for source in every)
    assert all(readers)


@pytest.mark.parametrize(("prefill", "decode", "whether"), [(4, 2, True), (3, 2, False)])
def test_counts_that_do_not_divide_are_told_apart(prefill, decode, whether):
    assert divisible(prefill, decode) is divisible(decode, prefill) is whether


def test_ranks_whose_counts_do_not_divide_still_meet_to_compare():
    assert partners(0, decode_ranks=3, prefill_ranks=2) == {0}
    assert partners(2, decode_ranks=3, prefill_ranks=2) == {1}

"""What a row says, and that a page in the wrong place is noticed."""

import json

import numpy as np
import pytest
import torch

from disagg_bench.pool import Pool, WrongPayloadError, draw_pages, page_indices
from disagg_bench.rows import (
    Row,
    Table,
    Verdict,
    at_least,
    at_most,
    below,
    document,
    percentile,
    speed_ratio,
)
from disagg_bench.shapes import Block, Shape, deepseek_v32, gpt_oss, qwen3_next


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (at_least(0.8), 0.8, Verdict.OK),
        (at_least(0.8), 0.79, Verdict.SHORT),
        (at_most(1), 1.0, Verdict.OK),
        (at_most(1), 1.01, Verdict.SHORT),
        (below(64), 63.9, Verdict.OK),
        (below(64), 64.0, Verdict.SHORT),
        (None, 5.0, Verdict.NONE),
    ],
)
def test_a_row_is_ok_or_short_by_its_own_target(target, value, verdict):
    assert Row(name="a", value=value, unit="x", target=target).verdict is verdict


def test_every_line_of_the_table_has_five_words_under_the_header():
    table = Table(name_width=12)
    lines = [
        table.line(),
        table.line(Row(name="copy/rate", value=3.14159, unit="GB/s")),
        table.line(Row(name="a/ratio", value=0.756, unit="x", target=at_least(0.8))),
    ]
    assert [line.split() for line in lines] == [
        ["name", "value", "unit", "target", "verdict"],
        ["copy/rate", "3.14", "GB/s", "-", "-"],
        ["a/ratio", "0.756", "x", ">=0.8", "short"],
    ]
    assert len({line.index(line.split()[2]) for line in lines}) == 1


def test_a_ratio_is_of_the_medians_and_above_one_when_ours_is_faster():
    assert speed_ratio(ours_s=[1, 1, 9], theirs_s=[2, 2, 50]) == 2


def test_a_percentile_is_one_of_the_values():
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([7.0], 0.99) == 7


def test_the_json_holds_rows_verdicts_and_the_machine():
    rows = [
        Row(name="a", value=2.0, unit="x", target=at_least(1)),
        Row(name="b", value=1, unit="s"),
    ]
    said = json.loads(json.dumps(document(rows, {"cores": 2})))
    assert said["machine"] == {"cores": 2}
    assert said["rows"] == [
        {"name": "a", "value": 2.0, "unit": "x", "target": ">=1", "verdict": "ok"},
        {"name": "b", "value": 1, "unit": "s", "target": None, "verdict": "-"},
    ]


@pytest.mark.parametrize(
    ("shape", "pieces", "megabytes"),
    [
        (deepseek_v32(), 7808 + 7808, 394),
        (qwen3_next(), 3072 + 72, 279),
        (gpt_oss(64), 4608 + 72, 307),
        (gpt_oss(16), 18_432 + 288, 307),
        (gpt_oss(1), 294_912 + 4608, 307),
    ],
)
def test_shapes_are_the_models_own(shape, pieces, megabytes):
    assert (shape.pieces, round(shape.nbytes / 1e6)) == (pieces, megabytes)


TINY = Shape(
    name="tiny",
    blocks=(
        Block(name="kv", state_type="kv", tensors=3, pages=4, piece_bytes=64, page_size=16),
        Block(name="conv", state_type="mamba", tensors=2, pages=1, piece_bytes=24, page_size=0),
    ),
    over_paged=1.0,
)


def test_chunks_cover_a_request_once_and_a_slot_is_cut_by_its_tensors():
    for shape in (TINY, qwen3_next(), deepseek_v32()):
        chunks = shape.chunks(200)
        assert sum(items.nbytes for items in chunks) == shape.nbytes
        for block in shape.blocks:
            mine = [items for items in chunks if items.block == block]
            starts = [items.first for items in mine]
            assert starts == [sum(items.count for items in mine[:n]) for n in range(len(mine))]
            assert [items.final for items in mine] == [False] * (len(mine) - 1) + [True]
    assert [items.count for items in qwen3_next().blocks[2].chunks(8 << 20)] == [4] * 9


def moved(*, repetition=0):
    """A decode pool after gather and scatter, with both sides' pages."""
    prefill, decode = Pool(TINY, filled=True), Pool(TINY, filled=False)
    theirs = draw_pages(TINY, side="prefill", repetition=repetition)
    own = draw_pages(TINY, side="decode", repetition=repetition)
    for items in TINY.chunks(200):
        name, arena = items.block.name, memoryview(bytearray(items.nbytes))
        prefill.gather(items, theirs[name], arena)
        decode.scatter(items, own[name], arena)
    return decode, own, theirs


def test_what_was_moved_passes_and_an_earlier_repetition_does_not():
    decode, own, theirs = moved()
    decode.check_pages(own, theirs)
    with pytest.raises(WrongPayloadError, match="not what was sent"):
        decode.check_pages(own, draw_pages(TINY, side="prefill", repetition=1))


def test_one_wrong_word_and_two_pages_swapped_are_noticed():
    decode, own, theirs = moved()
    for name, pages in own.items():
        assert pages.size == theirs[name].size
    swapped = {**own, "kv": np.roll(own["kv"], 1)}
    with pytest.raises(WrongPayloadError, match="of kv"):
        decode.check_pages(swapped, theirs)
    decode.memory[:] = torch.where(decode.memory != 0, decode.memory + 1, 0)
    with pytest.raises(WrongPayloadError, match="tensor 0 of kv"):
        decode.check_pages(own, theirs)


def test_descriptors_and_indices_name_the_pages_that_a_gather_takes():
    pool = Pool(TINY, filled=True)
    pages = draw_pages(TINY, side="prefill", repetition=3)
    rows = pool.descriptors()[page_indices(TINY, pages)]
    named = [
        word
        for address, length, _ in rows.tolist()
        for word in pool.memory[(address - pool.base) // 8 :][: length // 8].tolist()
    ]
    gathered = []
    for block in TINY.blocks:
        (items,) = block.chunks(block.nbytes)
        arena = memoryview(bytearray(items.nbytes))
        pool.gather(items, pages[block.name], arena)
        gathered += arena.cast("q").tolist()
    assert named == gathered

"""Pure parts: fingerprints and stage clocks."""

import re

import pytest
from msgspec.structs import replace

from disagg_transfer.contract import Stage
from disagg_transfer.deadlines import StageClocks, Timeouts, overdue
from disagg_transfer.layout import compare
from disagg_transfer.protocol import ComponentLayout, Fingerprint

KV = ComponentLayout(
    name="kv",
    state_type="kv",
    type_version=1,
    item_bytes=4096,
    layers=12,
    dtype="float32",
    page_size=16,
)
MAMBA = replace(KV, name="mamba", state_type="mamba", page_size=0)
BOTH = Fingerprint(model="m", page_size=16, ranks=1, components=(KV, MAMBA))


def test_equal_layouts_have_no_difference():
    turned = replace(BOTH, components=(MAMBA, KV))
    assert compare(BOTH, BOTH) == compare(BOTH, turned) == ()


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("state_type", "swa", "stateType"),
        ("type_version", 2, "typeVersion"),
        ("item_bytes", 8192, "itemBytes"),
        ("layers", 13, "layers"),
        ("dtype", "bfloat16", "dtype"),
        ("page_size", 64, "pageSize"),
    ],
)
def test_a_component_that_differs_is_named_with_both_values(field, value, name):
    other = replace(KV, **{field: value})
    (difference,) = compare(BOTH, replace(BOTH, components=(other, MAMBA)))
    assert difference.field == f"components[kv].{name}"
    assert (difference.prefill, difference.decode) == (str(getattr(KV, field)), str(value))


def test_every_difference_is_listed():
    decode = Fingerprint(model="n", page_size=1, ranks=1, components=(KV,))
    assert [(d.field, d.prefill, d.decode) for d in compare(BOTH, decode)] == [
        ("model", "m", "n"),
        ("pageSize", "16", "1"),
        ("components[mamba]", "state type mamba", "(absent)"),
    ]
    assert compare(decode, BOTH)[-1].prefill == "(absent)"


def ranked(ranks, **item_bytes):
    """A layout of so many ranks, whose components have items of so many bytes."""
    parts = tuple(
        replace(KV, name=name, state_type=name, item_bytes=size)
        for name, size in item_bytes.items()
    )
    return replace(BOTH, ranks=ranks, components=parts)


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        (ranked(2, kv=512, mamba=64, nsa=100), ranked(8, kv=128, mamba=16, nsa=100)),
        (ranked(8, kv=128, mamba=16), ranked(2, kv=512, mamba=64)),
        (ranked(2, kv=512), ranked(8, kv=256)),  # four heads: neighbors hold the same one
        (ranked(4, kv=512), ranked(8, kv=512)),
    ],
)
def test_unequal_counts_of_ranks_are_equal_layouts_where_items_are_shares(prefill, decode):
    assert compare(prefill, decode) == ()


@pytest.mark.parametrize(
    ("prefill", "decode", "field"),
    [
        (ranked(2, kv=512), ranked(4, kv=128), "components[kv].itemBytes"),  # a quarter of a half
        (ranked(2, kv=256), ranked(4, kv=512), "components[kv].itemBytes"),
        (ranked(1, kv=512), ranked(6, kv=128), "components[kv].itemBytes"),
        (ranked(2, nsa=512), ranked(4, nsa=256), "components[nsa].itemBytes"),
        (ranked(2, kv=512), ranked(2, kv=256), "components[kv].itemBytes"),
        (ranked(2, swa=512), ranked(4, swa=256), "components[swa].ranks"),
        (ranked(3, kv=512, swa=8), ranked(2, kv=512, swa=8), "ranks"),
    ],
)
def test_a_layout_that_cannot_be_resharded_is_told_once_by_its_field(prefill, decode, field):
    (difference,) = compare(prefill, decode)
    assert difference.field == field
    if field.endswith("ranks"):
        assert difference.prefill == str(prefill.ranks)
        assert difference.rule in str(difference) != ""


def test_a_refusal_to_reshard_quotes_where_its_rule_is_from():
    (difference,) = compare(ranked(2, swa=512), ranked(4, swa=256))
    assert "unless the model is MLA (sglang#38552" in difference.named


def test_a_state_type_s_limit_wins_over_the_stage_s_and_that_over_the_default():
    limits = Timeouts(default_s=30, stages={Stage.WIRE: 5}, state_types={"mamba": 1})
    assert limits.limit(Stage.WIRE, "mamba") == limits.limit(Stage.NOTIFY, "mamba") == 1
    assert limits.limit(Stage.WIRE, "kv") == limits.limit(Stage.WIRE) == 5
    assert limits.limit(Stage.NOTIFY, "kv") == 30


def test_a_stage_s_clock_starts_with_the_stage():
    clocks = StageClocks()
    assert clocks.earliest is None
    clocks.start(Stage.QUEUE, now=100, limit_s=50)
    clocks.start(Stage.NOTIFY, "kv", now=120, limit_s=10)
    clocks.start(Stage.NOTIFY, "mamba", now=120, limit_s=5)
    assert (clocks.earliest.component, clocks.earliest.at) == ("mamba", 125)
    clocks.stop(Stage.NOTIFY, "mamba")
    clocks.stop(Stage.NOTIFY, "mamba")
    assert clocks.earliest.component == "kv"
    clocks.stop(Stage.NOTIFY, "kv")
    assert (clocks.earliest.stage, clocks.earliest.at) == (Stage.QUEUE, 150)


@pytest.mark.parametrize(
    ("stage", "component", "told"),
    [
        ("bootstrap", None, "the peer was not met within 3 s"),
        ("queue", None, "the peer, asked for the request, has offered nothing of it within 3 s"),
        ("notify", "kv", "no offer of component kv within 3 s"),
        ("allocate", "kv", "the arena had no room for a chunk of component kv within 3 s"),
        ("post", "kv", "NIXL did not take the read of component kv within 3 s"),
        ("wire", "kv", "component kv did not arrive whole within 3 s"),
        ("wire", None, "everything arrived, but the peer did not confirm .* within 3 s"),
        ("scatter", None, "the engine did not take the request out .* within 3 s"),
    ],
)
def test_a_missed_deadline_says_what_did_not_happen(stage, component, told):
    clocks = StageClocks()
    clocks.start(Stage(stage), component, now=100.1, limit_s=3)
    assert re.fullmatch(told, overdue(clocks.earliest))

"""The ledger: complete means every component, tiled exactly, once, and nothing else."""

import dataclasses
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from disagg_transfer.accounting import Ledger, Part
from disagg_transfer.protocol import Offer

PARTS = {
    name: Part(component=name, state_type=kind, item_bytes=size, items=items)
    for name, kind, size, items in (
        ("kv", "kv", 64, 3),
        ("mamba.conv", "mamba", 10, 1),
        ("mamba.temporal", "mamba", 20, 1),
        ("none", "none", 0, 0),
    )
}


def offer(component, index, *, last=False, items=None, nbytes=None, chunk=0, first=0, final=True):
    part = PARTS.get(component)
    items = (part.items if part else 1) if items is None else items
    size = part.item_bytes if part else 8
    return Offer(
        room=1,
        request=bytes(16),
        epoch=1,
        index=index,
        last=last,
        component=component,
        chunk=chunk,
        first=first,
        items=items,
        final=final,
        offset=0,
        nbytes=items * size if nbytes is None else nbytes,
        digest=b"",
        aux=b"aux" if last else b"",
    )


def kv(index, first, items, *, chunk, final=False, last=False):
    return offer("kv", index, first=first, items=items, chunk=chunk, final=final, last=last)


def every_offer():
    names = list(PARTS)
    return [offer(name, i, last=i == len(names) - 1) for i, name in enumerate(names)]


@st.composite
def requests(draw):
    """Parts, and offers whose chunks tile them as prefill would say them."""
    parts, offers = {}, []
    for number in range(draw(st.integers(1, 4))):
        items = draw(st.integers(0, 12))
        have = draw(st.integers(0, items))
        name = f"c{number}"
        parts[name] = Part(component=name, state_type="kv", item_bytes=8, items=items, have=have)
        start = draw(st.sampled_from([0, have]))
        cuts = draw(st.sets(st.integers(start, items))) - {items}
        bounds = [start, *sorted(cuts - {start}), items]
        spans = list(itertools.pairwise(bounds)) if start < items else [(items, items)]
        for chunk, (first, end) in enumerate(spans):
            final = chunk == len(spans) - 1
            body = {"first": first, "items": end - first, "nbytes": (end - first) * 8}
            offers.append({"component": name, "chunk": chunk, "final": final, **body})
    order = draw(st.permutations(offers))
    return parts, [
        replace(offer("kv", index, last=index == len(order) - 1), **fields)
        for index, fields in enumerate(order)
    ]


@given(requests(), st.randoms(use_true_random=False), st.data())
def test_it_is_complete_exactly_when_the_last_chunk_has_arrived(drawn, rng: random.Random, data):
    parts, offers = drawn
    rng.shuffle(offers)
    ledger = Ledger(parts)
    waiting = []
    for entry in offers:
        assert ledger.offer(entry) is None
        waiting.append(entry)
        rng.shuffle(waiting)
        while waiting and data.draw(st.booleans()):
            assert not ledger.complete
            ledger.arrived(waiting.pop())
    for entry in waiting:
        assert not ledger.complete
        ledger.arrived(entry)
    assert ledger.complete
    assert ledger.outstanding == ledger.unoffered == ()


@given(requests(), st.data())
def test_one_chunk_repeated_lost_or_moved_never_completes_a_request(drawn, data):
    parts, offers = drawn
    victim = data.draw(st.sampled_from(offers))
    part = parts[victim.component]
    wrong = data.draw(st.sampled_from(["repeated", "lost", "renamed", "moved", "grown"]))
    if wrong == "repeated":
        offers.append(replace(victim, last=False))
    elif wrong == "renamed":
        offers.append(replace(victim, last=False, index=len(offers) + 7, chunk=999))
    elif wrong == "lost":
        offers.remove(victim)
    else:
        offers.remove(victim)
        changed = {"first": victim.first + 1} if wrong == "moved" else {"items": victim.items + 1}
        fields = {"first": victim.first, "items": victim.items, **changed}
        offers.append(replace(victim, **fields, nbytes=8 * fields["items"]))
    data.draw(st.randoms(use_true_random=False)).shuffle(offers)
    ledger = Ledger(parts)
    faults = []
    for entry in offers:
        fault = ledger.offer(entry)
        if fault is not None:
            faults.append(fault)
            break
        ledger.arrived(entry)
    needless = victim.first + victim.items <= part.have and wrong in ("moved", "grown")
    assert faults or not ledger.complete or needless


@pytest.mark.parametrize("missing", list(PARTS))
def test_a_component_that_is_late_is_not_missing_until_all_offers_are_here(missing):
    ledger = Ledger(PARTS)
    for entry in every_offer():
        if entry.component != missing:
            assert ledger.offer(entry) is None
            ledger.arrived(entry)
    assert not ledger.complete
    assert [part.component for part in ledger.unoffered] == [missing]


@pytest.mark.parametrize("missing", list(PARTS))
def test_a_component_that_the_peer_never_offers_is_missing(missing):
    ledger = Ledger(PARTS)
    names = [name for name in PARTS if name != missing]
    faults = [ledger.offer(offer(n, i, last=n == names[-1])) for i, n in enumerate(names)]
    assert faults[:-1] == [None, None]
    assert (faults[-1].cause, faults[-1].component) == ("MissingState", missing)
    assert faults[-1].state_type == PARTS[missing].state_type


def test_items_in_no_chunk_are_missing_by_their_numbers():
    ledger = Ledger({"kv": PARTS["kv"]})
    assert ledger.offer(kv(0, 0, 1, chunk=0)) is None
    fault = ledger.offer(kv(1, 2, 1, chunk=1, final=True, last=True))
    assert (fault.cause, fault.component) == ("MissingState", "kv")
    assert "lack: items 1..1 of kv" in fault.detail


def test_a_component_without_a_final_chunk_is_not_whole():
    ledger = Ledger({"kv": PARTS["kv"]})
    fault = ledger.offer(kv(0, 0, 3, chunk=0, last=True))
    assert fault.cause == "MissingState"
    assert "the final chunk of kv" in fault.detail


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (offer("conv2", 1), "ExtraState"),
        (offer("kv", 1), "DuplicatePayload"),
        (offer("kv", 0), "DuplicatePayload"),
        (offer("mamba.conv", 0), "DuplicatePayload"),
        (kv(1, 1, 1, chunk=1), "OverlappingPayload"),
        (kv(1, 0, 3, chunk=1), "OverlappingPayload"),
        (kv(1, 2, 2, chunk=1), "LongPayload"),
        (kv(1, 3, 0, chunk=1, final=True), "DuplicatePayload"),
        (offer("mamba.conv", 1, items=0), "ShortPayload"),
        (offer("mamba.conv", 1, items=2), "LongPayload"),
        (offer("mamba.conv", 1, nbytes=9), "ShortPayload"),
        (offer("mamba.conv", 1, nbytes=11), "LongPayload"),
        (offer("mamba.conv", 1, items=0, final=False), "ProtocolError"),
        (offer("none", 1, nbytes=1), "LongPayload"),
        (offer("none", 1, items=1), "LongPayload"),
    ],
)
def test_an_offer_that_does_not_fit_dooms_the_request(bad, cause):
    ledger = Ledger(PARTS)
    assert ledger.offer(offer("kv", 0)) is None
    fault = ledger.offer(bad)
    assert (fault.cause, fault.component) == (cause, bad.component)


def test_nothing_may_follow_the_last_offer():
    ledger = Ledger(PARTS)
    ledger.offer(offer("kv", 1, last=True))
    assert ledger.offer(offer("none", 2)).cause == "ExtraState"
    ledger = Ledger(PARTS)
    ledger.offer(offer("kv", 2))
    assert ledger.offer(offer("none", 1, last=True)).cause == "ExtraState"


def held(have):
    return {"kv": dataclasses.replace(PARTS["kv"], have=have)}


def test_what_decode_has_need_not_be_offered():
    ledger = Ledger(held(2))
    entry = kv(0, 2, 1, chunk=0, final=True, last=True)
    assert ledger.offer(entry) is None
    assert not ledger.needless(entry)
    ledger.arrived(entry)
    assert ledger.complete


def test_a_chunk_below_what_decode_has_is_needless_and_one_astride_is_not():
    ledger = Ledger(held(2))
    below, astride = kv(0, 0, 1, chunk=0), kv(1, 1, 2, chunk=1, final=True, last=True)
    assert ledger.offer(below) is None
    assert ledger.offer(astride) is None
    assert (ledger.needless(below), ledger.needless(astride)) == (True, False)
    ledger.arrived(below)
    assert not ledger.complete
    ledger.arrived(astride)
    assert ledger.complete


def test_a_component_held_whole_may_stay_unspoken_of():
    ledger = Ledger({**held(3), "none": PARTS["none"]})
    entry = offer("none", 0, last=True)
    assert ledger.offer(entry) is None
    ledger.arrived(entry)
    assert ledger.complete

"""The ledger: complete means every component, whole, once, and nothing else."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def offer(component, index, *, last=False, items=None, nbytes=None, chunk=0, chunks=1):
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
        chunks=chunks,
        items=items,
        offset=0,
        nbytes=items * size if nbytes is None else nbytes,
        digest=b"",
        aux=b"aux" if last else b"",
    )


def every_offer():
    names = list(PARTS)
    return [offer(name, i, last=i == len(names) - 1) for i, name in enumerate(names)]


@given(st.randoms(use_true_random=False), st.data())
def test_it_is_complete_exactly_when_the_last_component_has_arrived(rng: random.Random, data):
    offers = every_offer()
    rng.shuffle(offers)
    ledger = Ledger(PARTS)
    waiting = []
    for entry in offers:
        assert ledger.offer(entry) is None
        waiting.append(entry.component)
        rng.shuffle(waiting)
        while waiting and data.draw(st.booleans()):
            assert not ledger.complete
            ledger.arrived(waiting.pop())
    for component in waiting:
        assert not ledger.complete
        ledger.arrived(component)
    assert ledger.complete
    assert ledger.aux == b"aux"
    assert ledger.outstanding == ledger.unoffered == ()


@pytest.mark.parametrize("missing", list(PARTS))
def test_a_component_that_is_late_is_not_missing_until_all_offers_are_here(missing):
    ledger = Ledger(PARTS)
    for entry in every_offer():
        if entry.component != missing:
            assert ledger.offer(entry) is None
            ledger.arrived(entry.component)
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


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (offer("conv2", 1), "ExtraState"),
        (offer("kv", 1), "ExtraState"),
        (offer("mamba.conv", 0), "ExtraState"),
        (offer("mamba.conv", 1, items=0), "ShortPayload"),
        (offer("mamba.conv", 1, items=2), "LongPayload"),
        (offer("mamba.conv", 1, nbytes=9), "ShortPayload"),
        (offer("mamba.conv", 1, nbytes=11), "LongPayload"),
        (offer("none", 1, nbytes=1), "LongPayload"),
        (offer("mamba.conv", 1, chunk=1, chunks=2), "ProtocolError"),
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

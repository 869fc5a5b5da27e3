"""When unsettled memory is too much, and what is said of it. Time comes in as numbers."""

import pytest

from disagg_transfer.agent.quarantine import Quarantine
from disagg_transfer.arena import Span
from disagg_transfer.limits import QuarantineLimits

LIMITS = QuarantineLimits(share=0.5, lasting_share=0.1, lasting_s=120)


@pytest.fixture
def quarantine():
    return Quarantine(LIMITS, arena_bytes=1000)


def span(number, nbytes):
    return Span(number=number, offset=0, nbytes=nbytes)


def test_half_of_the_arena_is_borne_and_more_is_not(quarantine):
    quarantine.put(span(1, 500), writer="a read from p-0", now=0)
    assert quarantine.poison(1) is None
    quarantine.put(span(2, 1), writer="a read from p-1", now=3)
    assert quarantine.poison(7) == (
        "501 bytes (50% of the arena) may still be written, 500 of them by a read from p-0, "
        "the oldest for 7 s; the limit is 50%"
    )


def test_a_tenth_is_borne_for_two_minutes(quarantine):
    quarantine.put(span(1, 100), writer="a read from p-0", now=0)
    quarantine.put(span(2, 1), writer="a read from p-1", now=10)
    assert quarantine.poison(130) is None
    assert "the limit for longer than 120 s is 10%" in quarantine.poison(130.1)


def test_what_has_settled_no_longer_counts(quarantine):
    first = span(1, 501)
    quarantine.put(first, writer="a read from p-0", now=0)
    assert quarantine.poison(0) is not None
    quarantine.take(first)
    assert quarantine.poison(1000) is None

"""An extent is never handed out while anybody may still touch it."""

import mmap
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from disagg_transfer.arena import ALIGNMENT, ArenaMemory, Extents
from disagg_transfer.errors import ArenaError

PAGES = 32


class ExtentsModel(RuleBasedStateMachine):
    """Random use against a plain model: which pages belong to whom."""

    def __init__(self):
        super().__init__()
        self.extents = Extents(PAGES * ALIGNMENT)
        self.held, self.unsettled, self.gone = [], [], []

    def pages(self, span):
        first = span.offset // ALIGNMENT
        return set(range(first, first + -(-span.nbytes // ALIGNMENT)))

    def taken(self):
        return [page for span in self.held + self.unsettled for page in self.pages(span)]

    @rule(nbytes=st.integers(0, 8 * ALIGNMENT))
    def reserve(self, nbytes):
        before = set(self.taken())
        span = self.extents.reserve(nbytes)
        wanted = -(-nbytes // ALIGNMENT)
        free = "".join("x" if page in before else "." for page in range(PAGES))
        assert (span is None) == ("." * wanted not in free)
        if span is not None:
            assert not self.pages(span) & before
            assert (span.nbytes, span.offset % ALIGNMENT) == (nbytes, 0)
            self.held.append(span)

    @rule(sizes=st.lists(st.integers(1, 12 * ALIGNMENT), max_size=4))
    def reserve_all(self, sizes):
        before = self.extents.used
        spans = self.extents.reserve_all(sizes)
        if spans is None:
            assert self.extents.used == before
        else:
            self.held.extend(spans)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data):
        span = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.extents.free(span)
        self.gone.append(span)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def quarantine(self, data):
        span = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.extents.quarantine(span)
        self.unsettled.append(span)
        with pytest.raises(ArenaError, match="unsettled"):
            self.extents.free(span)

    @precondition(lambda self: self.unsettled)
    @rule(data=st.data())
    def settle(self, data):
        span = self.unsettled.pop(data.draw(st.integers(0, len(self.unsettled) - 1)))
        self.extents.settle(span)
        self.gone.append(span)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def free_twice(self, data):
        span = data.draw(st.sampled_from(self.gone))
        for again in (self.extents.free, self.extents.settle, self.extents.quarantine):
            with pytest.raises(ArenaError, match="not held"):
                again(span)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def settle_what_is_in_use(self, data):
        with pytest.raises(ArenaError, match="in use"):
            self.extents.settle(data.draw(st.sampled_from(self.held)))

    @invariant()
    def no_page_has_two_holders_and_the_sums_are_right(self):
        taken = self.taken()
        assert len(taken) == len(set(taken))
        assert self.extents.used == len(taken) * ALIGNMENT
        unsettled = [page for span in self.unsettled for page in self.pages(span)]
        assert self.extents.unsettled == len(unsettled) * ALIGNMENT

    def teardown(self):
        for span in self.held:
            self.extents.free(span)
        for span in self.unsettled:
            self.extents.settle(span)
        assert self.extents.reserve(PAGES * ALIGNMENT) is not None  # nothing leaked, all joined


TestExtents = ExtentsModel.TestCase
TestExtents.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.mark.parametrize("size", [0, -ALIGNMENT, ALIGNMENT + 1])
def test_an_arena_of_a_bad_size_is_refused(size):
    with pytest.raises(ArenaError, match=f"arena size {size} "):
        Extents(size)


def test_arena_memory_cannot_be_shrunk_under_a_mapping():
    memory = ArenaMemory(4 * ALIGNMENT)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, ALIGNMENT)
    other = mmap.mmap(memory.fd, memory.size)
    other[0:3] = b"abc"
    assert bytes(memory.view[:3]) == b"abc"
    other.close()
    os.close(memory.fd)

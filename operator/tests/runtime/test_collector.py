import gc
import weakref

import pytest

from disagg_operator.collector import WHOLE_EVERY_S, Collector


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self):
        self.itself = self


@pytest.fixture
def hour():
    """Seconds that the collector's clock shows; automatic collections are off meanwhile."""
    now = [WHOLE_EVERY_S]
    collector = Collector(clock=lambda: now[0])
    gc.disable()
    gc.callbacks.append(collector)
    yield now
    gc.callbacks.remove(collector)
    gc.unfreeze()
    gc.enable()
    gc.collect()


def test_what_survived_a_full_collection_is_not_walked_over_again(hour):
    ring = Ring()
    gc.collect()
    assert gc.get_freeze_count() > 1000
    lost = weakref.ref(ring)
    del ring
    gc.collect()
    assert lost() is not None


def test_what_was_put_aside_is_looked_at_once_an_hour(hour):
    ring = Ring()
    gc.collect()
    lost = weakref.ref(ring)
    del ring
    hour[0] += WHOLE_EVERY_S
    gc.collect()
    assert lost() is None


def test_what_is_lost_before_a_full_collection_is_found_by_it(hour):
    gc.collect()
    lost = weakref.ref(Ring())
    gc.collect()
    assert lost() is None


def test_collections_of_the_young_put_nothing_aside(hour):
    gc.unfreeze()
    ring = Ring()
    gc.collect(1)
    assert gc.get_freeze_count() == 0
    assert ring.itself is ring

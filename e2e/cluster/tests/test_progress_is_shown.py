"""A long step says that it goes on and how long it took; a short one says nothing."""

import threading

import pytest

from disagg_cluster.progress import step


def test_a_short_step_is_silent():
    told = []
    with step("short", tell=told.append, announce_after_s=60):
        pass
    assert told == []


def test_a_long_step_goes_on_and_ends_with_its_time():
    told, spoken = [], threading.Semaphore(0)

    def tell(text):
        told.append(text)
        spoken.release()

    with step("long", tell=tell, announce_after_s=0.01, repeat_every_s=0.01):
        for _ in range(2):
            assert spoken.acquire(timeout=10)
    assert told[0] == "long ..."
    assert told[1] == "long ... 0 s so far"
    assert told[-1] == "long ... 0 s"


def test_a_failed_step_says_so():
    told, spoken = [], threading.Event()

    def tell(text):
        told.append(text)
        spoken.set()

    def fail():
        with step("bad", tell=tell, announce_after_s=0.01, repeat_every_s=60):
            assert spoken.wait(timeout=10)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert told[-1] == "bad ... failed after 0 s"

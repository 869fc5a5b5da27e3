"""The lane against a fabric that does as the test says."""

import os
import queue
import threading
import time

import numpy as np
import pytest

from disagg_transfer.errors import FabricError, PeerDisconnectedError
from disagg_transfer.lane import RELOAD_PAUSE_S, Lane, ReadEvent
from disagg_transfer.nixl_fabric import PROGRESS_DELAY_US, Progress
from disagg_transfer.reads import PIECE_BYTES, WINDOW_BYTES
from disagg_transfer.ucx import Transport, UcxSettings


class StagedFabric:
    """Reads stay active until `finish` is set; every call is written down."""

    def __init__(self, name, *, base, size, ucx, passive):
        self.metadata = b"metadata"
        self.calls, self.handles = [], 0
        self.finish = threading.Event()
        self.error, self.broken = None, set()
        self.threads = set()
        StagedFabric.latest = self

    def _note(self, *call):
        self.threads.add(threading.current_thread().name)
        self.calls.append(call)

    def add_peer(self, name, metadata):
        self._note("add", name)

    def remove_peer(self, name):
        self._note("remove", name)

    def read(self, peer, *, local, remote, nbytes):
        self._note("read", local, remote, nbytes)
        self.handles += 1
        return self.handles

    def post(self, handle):
        self._note("post", handle)
        return Progress.ACTIVE

    def poll(self, handle):
        if self.error is not None:
            raise self.error
        if handle in self.broken:
            raise FabricError(f"piece {handle} broke")
        return Progress.DONE if self.finish.is_set() else Progress.ACTIVE

    def release(self, handle):
        self._note("release", handle)


@pytest.fixture
def lane():
    lane = Lane(
        "a/b/c",
        base=1 << 20,
        size=1 << 20,
        ucx=UcxSettings(),
        passive=False,
        open_fabric=StagedFabric,
    )
    assert lane.start(timeout_s=5) == b"metadata"
    yield lane
    StagedFabric.latest.finish.set()
    lane.close(timeout_s=5)
    assert not lane.alive
    assert StagedFabric.latest.threads <= {"lane"}


def start_read(lane, nbytes):
    events = queue.Queue()
    read = lane.read(
        "peer", local=1000, remote=5000, nbytes=nbytes, listener=lambda *e: events.put(e)
    )
    assert events.get(timeout=5)[0] is ReadEvent.POSTED
    return read, events


def test_a_read_is_posted_in_bounded_pieces(lane):
    StagedFabric.latest.finish.set()
    _, events = start_read(lane, 2 * PIECE_BYTES + 5)
    assert events.get(timeout=5)[0] is ReadEvent.DONE
    reads = [call[1:] for call in StagedFabric.latest.calls if call[0] == "read"]
    assert reads == [
        (1000, 5000, PIECE_BYTES),
        (1000 + PIECE_BYTES, 5000 + PIECE_BYTES, PIECE_BYTES),
        (1000 + 2 * PIECE_BYTES, 5000 + 2 * PIECE_BYTES, 5),
    ]
    assert [call for call in StagedFabric.latest.calls if call[0] == "release"] == [
        ("release", 1),
        ("release", 2),
        ("release", 3),
    ]


def test_a_small_read_that_ends_at_once_is_told_of_once(lane):
    StagedFabric.latest.finish.set()
    events = queue.Queue()
    lane.read("peer", local=0, remote=0, nbytes=4096, listener=lambda *e: events.put(e))
    assert events.get(timeout=5)[0] is ReadEvent.DONE


def test_a_small_read_that_stays_under_way_is_told_of_twice(lane):
    _, events = start_read(lane, 4096)
    StagedFabric.latest.finish.set()
    assert events.get(timeout=5)[0] is ReadEvent.DONE


def posted(lane, count):
    """Wait until so many pieces are with NIXL."""
    deadline = time.monotonic() + 5
    while sum(call[0] == "post" for call in StagedFabric.latest.calls) < count:
        assert time.monotonic() < deadline, "the pieces were not posted"


def test_an_abandoned_read_settles_only_when_its_pieces_are_done(lane):
    read, events = start_read(lane, 2 * WINDOW_BYTES)
    posted(lane, WINDOW_BYTES // PIECE_BYTES)
    lane.abandon(read)
    with pytest.raises(queue.Empty):
        events.get(timeout=0.2)
    assert ("release", 1) not in StagedFabric.latest.calls
    StagedFabric.latest.finish.set()
    assert events.get(timeout=5)[0] is ReadEvent.SETTLED
    reads = sum(call[0] == "read" for call in StagedFabric.latest.calls)
    assert reads == WINDOW_BYTES // PIECE_BYTES


def test_a_read_that_never_got_a_piece_settles_behind_a_stuck_one(lane):
    start_read(lane, 2 * WINDOW_BYTES)
    posted(lane, WINDOW_BYTES // PIECE_BYTES)
    events = queue.Queue()
    behind = lane.read(
        "peer", local=0, remote=0, nbytes=PIECE_BYTES, listener=lambda *e: events.put(e)
    )
    lane.abandon(behind)
    assert events.get(timeout=5)[0] is ReadEvent.SETTLED


def test_one_piece_s_error_fails_the_read_only_when_the_others_are_done(lane):
    read, events = start_read(lane, WINDOW_BYTES)
    posted(lane, 2)
    StagedFabric.latest.broken.add(1)
    with pytest.raises(queue.Empty):
        events.get(timeout=0.2)
    assert (read.pieces, read.posting) == (1, False)
    StagedFabric.latest.finish.set()
    assert events.get(timeout=5) == (ReadEvent.FAILED, "piece 1 broke")


@pytest.mark.parametrize("abandon", [False, True])
def test_an_error_is_terminal(lane, abandon):
    read, events = start_read(lane, 10)
    if abandon:
        lane.abandon(read)
    StagedFabric.latest.error = PeerDisconnectedError("gone")
    event, detail = events.get(timeout=5)
    assert event is (ReadEvent.SETTLED if abandon else ReadEvent.FAILED)
    assert "gone" in detail
    assert ("release", 1) in StagedFabric.latest.calls


def test_a_peer_is_not_removed_under_a_read(lane):
    _, events = start_read(lane, 10)
    removed = threading.Event()
    lane.remove_peer("peer", lambda _error: removed.set())
    added = threading.Event()
    lane.add_peer("another", b"", lambda _error: added.set())
    assert added.wait(5)
    assert not removed.is_set()
    StagedFabric.latest.finish.set()
    assert events.get(timeout=5)[0] is ReadEvent.DONE
    assert removed.wait(5)


def test_a_peer_removed_just_now_is_not_loaded_again_at_once(lane):
    done = queue.Queue()
    lane.remove_peer("peer", lambda _error: done.put(("removed", time.monotonic())))
    lane.add_peer("peer", b"", lambda _error: done.put(("added", time.monotonic())))
    lane.add_peer("another", b"", lambda _error: done.put(("another", time.monotonic())))
    order = [done.get(timeout=5) for _ in range(3)]
    assert [name for name, _ in order] == ["removed", "another", "added"]
    assert order[2][1] - order[0][1] >= RELOAD_PAUSE_S * 0.9


def memory_of(nbytes):
    memory = np.zeros(nbytes, dtype=np.uint8)
    return memory, memory.ctypes.data


@pytest.mark.parametrize("same_name", [True, False], ids=["session lost", "process restarted"])
def test_a_peer_that_comes_back_is_read_again(same_name):
    """Real NIXL: removed and loaded anew, by its old name or by a new incarnation's."""
    nbytes = WINDOW_BYTES + 12_345
    ours, here = memory_of(nbytes)
    reader = Lane(
        "n/d/1", base=here, size=nbytes, ucx=UcxSettings(transport=Transport.TCP), passive=False
    )
    reader.start(timeout_s=30)
    target = None
    for turn in range(2):
        if target is None or not same_name:
            theirs, there = memory_of(nbytes)
            name = f"n/p/{turn}"
            target = Lane(name, base=there, size=nbytes, ucx=UcxSettings(), passive=True)
            metadata = target.start(timeout_s=30)
        theirs[:] = np.random.default_rng(turn).integers(0, 256, nbytes, dtype=np.uint8)
        answers, events = queue.Queue(), queue.Queue()
        reader.add_peer(name, metadata, answers.put)
        assert answers.get(timeout=5) is None
        reader.read(
            name, local=here, remote=there, nbytes=nbytes, listener=lambda *e, q=events: q.put(e)
        )
        assert [events.get(timeout=10)[0] for _ in range(2)] == [ReadEvent.POSTED, ReadEvent.DONE]
        assert np.array_equal(ours, theirs)
        reader.remove_peer(name, answers.put)
        if not same_name:
            target.close(timeout_s=5)
    reader.close(timeout_s=5)
    target.close(timeout_s=5)


def test_a_transport_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("UCX_TLS", "tcp")
    ucx = UcxSettings(devices=("nosuch0",))
    lane = Lane("a", base=0, size=0, ucx=ucx, passive=False)
    with pytest.raises(FabricError, match="transport any, devices nosuch0"):
        lane.start(timeout_s=30)
    assert "UCX_NET_DEVICES" not in os.environ
    monkeypatch.setenv("UCX_NET_DEVICES", "lo")
    memory, base = memory_of(1 << 12)
    lane = Lane("a", base=base, size=memory.nbytes, ucx=ucx, passive=False)
    assert lane.start(timeout_s=30), "the environment wins"
    lane.close(timeout_s=5)


def test_a_fabric_that_does_not_start_says_why():
    class Broken:
        def __init__(self, name, *, base, size, ucx, passive):
            raise FabricError("create the NIXL agent: no memory")

    lane = Lane("a", base=0, size=0, ucx=UcxSettings(), passive=False, open_fabric=Broken)
    with pytest.raises(FabricError, match="no memory"):
        lane.start(timeout_s=5)


def test_the_progress_thread_sleeps():
    """0 is NIXL's default here, and burns a core in an idle agent."""
    assert PROGRESS_DELAY_US >= 500

"""The lane against a fabric that does as the test says."""

import queue
import threading

import pytest

from disagg_transfer.errors import FabricError, PeerDisconnectedError
from disagg_transfer.lane import PIECE_BYTES, Lane, ReadEvent
from disagg_transfer.nixl_fabric import PROGRESS_DELAY_US, Progress


class StagedFabric:
    """Reads stay active until `finish` is set; every call is written down."""

    def __init__(self, name, *, base, size):
        self.metadata = b"metadata"
        self.calls, self.handles = [], 0
        self.finish = threading.Event()
        self.error = None
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
        return Progress.DONE if self.finish.is_set() else Progress.ACTIVE

    def release(self, handle):
        self._note("release", handle)


@pytest.fixture
def lane():
    lane = Lane("a/b/c", base=1 << 20, size=1 << 20, open_fabric=StagedFabric)
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


def test_an_abandoned_read_settles_only_when_its_piece_is_done(lane):
    read, events = start_read(lane, 3 * PIECE_BYTES)
    lane.abandon(read)
    with pytest.raises(queue.Empty):
        events.get(timeout=0.2)
    assert ("release", 1) not in StagedFabric.latest.calls
    StagedFabric.latest.finish.set()
    assert events.get(timeout=5)[0] is ReadEvent.SETTLED
    assert sum(call[0] == "read" for call in StagedFabric.latest.calls) == 1


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


def test_a_fabric_that_does_not_start_says_why():
    class Broken:
        def __init__(self, name, *, base, size):
            raise FabricError("create the NIXL agent: no memory")

    lane = Lane("a", base=0, size=0, open_fabric=Broken)
    with pytest.raises(FabricError, match="no memory"):
        lane.start(timeout_s=5)


def test_the_progress_thread_sleeps():
    """0 is NIXL's default here, and burns a core in an idle agent."""
    assert PROGRESS_DELAY_US >= 500

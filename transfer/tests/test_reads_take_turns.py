"""Which read of a peer is served next, and what UCX is told."""

import pytest

from disagg_transfer.reads import PIECE_BYTES, SMALL_BYTES, WINDOW_BYTES, PeerReads, Piece, Read
from disagg_transfer.ucx import Transport, UcxSettings


class Wire:
    """A peer that delivers pieces in the order they were asked for, at one speed."""

    def __init__(self):
        self.reads = PeerReads()
        self.delivered = []

    def read(self, name, nbytes):
        self.reads.add(Read(name, 0, 0, nbytes, lambda *_: None))

    def post(self):
        while (read := self.reads.next()) is not None:
            piece = Piece(read, 0, read.next_bytes)
            read.position += piece.nbytes
            read.pieces += 1
            self.reads.pieces.append(piece)
            self.reads.line_up(read)

    def deliver(self):
        piece = self.reads.pieces.pop(0)
        piece.read.pieces -= 1
        self.delivered.append(piece)
        return [read.peer for read in self.reads.take_ended()]

    def run(self):
        """(name, bytes delivered until then) of each read in the order of their ends."""
        ends = []
        self.post()
        while self.reads.pieces:
            ended = self.deliver()
            ends += [(name, sum(piece.nbytes for piece in self.delivered)) for name in ended]
            self.post()
        assert not self.reads.reads
        return ends


def test_large_reads_take_turns_by_piece():
    wire = Wire()
    wire.read("long", 20 * PIECE_BYTES)
    wire.post()
    wire.read("short", 2 * PIECE_BYTES)
    ends = dict(wire.run())
    # Its two pieces, a piece of the other in between, and the window that was under way.
    assert ends["short"] <= WINDOW_BYTES + 4 * PIECE_BYTES
    assert ends["long"] == 22 * PIECE_BYTES


def test_a_small_read_waits_for_what_is_under_way_and_no_longer():
    wire = Wire()
    for number in range(8):
        wire.read(f"large {number}", 10 * PIECE_BYTES)
    wire.post()
    wire.read("small", SMALL_BYTES)
    assert dict(wire.run())["small"] == WINDOW_BYTES + SMALL_BYTES


def test_a_flood_of_small_reads_leaves_large_ones_their_turn():
    wire = Wire()
    wire.read("large", 4 * PIECE_BYTES)
    for number in range(2000):
        wire.read(f"small {number}", SMALL_BYTES)
    assert dict(wire.run())["large"] <= 4 * (PIECE_BYTES + WINDOW_BYTES + PIECE_BYTES)


def test_equal_reads_end_together():
    wire = Wire()
    for number in range(16):
        wire.read(str(number), 5 * PIECE_BYTES)
    ends = [at for _, at in wire.run()]
    assert min(ends) >= 0.8 * max(ends)


def test_no_more_than_a_window_is_under_way():
    wire = Wire()
    wire.read("large", 100 * PIECE_BYTES)
    wire.post()
    assert sum(piece.nbytes for piece in wire.reads.pieces) == WINDOW_BYTES
    for number in range(1000):
        wire.read(str(number), 10)
    wire.post()
    assert len(wire.reads.pieces) <= 64


def test_ucx_is_told_the_transport_and_the_devices_by_environment():
    ucx = UcxSettings(transport=Transport.RDMA, devices=("mlx5_0:1", "mlx5_1:1"))
    assert ucx.environment["UCX_NET_DEVICES"] == "mlx5_0:1,mlx5_1:1"
    assert "tcp" not in ucx.environment["UCX_TLS"].split(",")
    assert UcxSettings().environment == {}


@pytest.mark.parametrize("transport", list(Transport))
def test_the_engine_configuration_holds_no_comma_inside_a_value(transport):
    """NIXL splits it there."""
    pairs = UcxSettings(transport=transport).engine_config.split(",")
    assert all(pair.count("=") == 1 for pair in pairs)
    assert "TCP_USER_TIMEOUT=5s" in pairs

"""Whatever ends one side of a request, in whatever stage, the other side knows within a second."""

import time

import pytest

from disagg_transfer.client import TransferFailed

TOLD_WITHIN_S = 1.0


def failure_of(future):
    with pytest.raises(TransferFailed) as caught:
        future.result(5)
    return caught.value


class Request:
    """One request brought to a stage, and the two calls that wait for its end."""

    def __init__(self, pair, kit, room):
        self.pair, self.kit, self.room = pair, kit, room

    def reach(self, stage):
        pair, kit, room = self.pair, self.kit, self.room
        if stage == "notify":
            pair.prefill.fault("withhold", "mamba")
        self.pulled = kit.in_thread(pair.pull, room)
        kit.until(lambda: pair.claimed(room))
        if stage == "queue":
            pair.p.begin(room)
        else:
            pair.offer(room, pair.payloads())
        self.waiting = kit.in_thread(pair.p.wait_released, room, 20)
        if stage == "queue":
            kit.until(lambda: pair.leased(room))
        elif stage == "notify":
            kit.until(lambda: "swa pulled" in pair.prefill.transfers()[0]["components"])
        else:
            self.pulled.result(5)
            kit.until(lambda: pair.prefill.transfers()[0]["state"] == "ARRIVED")

    def end(self, side, how):
        engine = self.pair.p if side == "prefill" else self.pair.d
        if how == "abort":
            engine.abort(self.room, "enough of it")
        else:
            engine.close()

    def failure_at(self, side, stage):
        if side == "prefill":
            return failure_of(self.waiting)
        if stage == "scatter":  # decode has its bytes; it learns by what it says next
            return failure_of(self.kit.in_thread(self.pair.d.release, self.room))
        return failure_of(self.pulled)


@pytest.mark.parametrize("how", ["abort", "engine gone"])
@pytest.mark.parametrize(
    ("stage", "side", "told_stage"),
    [
        ("queue", "prefill", "queue"),
        ("queue", "decode", "queue"),
        ("notify", "prefill", "wire"),  # prefill has offered everything, for all it knows
        ("notify", "decode", "notify"),
        ("scatter", "decode", "scatter"),  # decode has everything, and needs prefill no more
    ],
)
def test_the_other_side_is_told(pair, rooms, kit, stage, side, told_stage, how):
    request = Request(pair, kit, next(rooms))
    request.reach(stage)
    ended = time.monotonic()
    request.end(side, how)
    other = "decode" if side == "prefill" else "prefill"
    failure = request.failure_at(other, stage)
    assert time.monotonic() - ended < TOLD_WITHIN_S
    assert failure.cause == ("Aborted" if how == "abort" else "EngineLost")
    assert failure.stage == told_stage
    assert ("enough of it" in failure.detail) == (how == "abort")
    pair.prefill.fault("lift")
    if how == "engine gone":
        pair.close()
        pair.connect()
        kit.until(lambda: pair.decode.report().ready)
    pair.round_trip(next(rooms))


@pytest.mark.parametrize("stage", ["queue", "notify", "scatter"])
def test_a_missed_deadline_is_told(hasty, rooms, kit, stage):
    """Decode keeps the clocks of these; one to one and a half seconds by the fixture."""
    request = Request(hasty, kit, next(rooms))
    request.reach(stage)
    if stage != "scatter":
        mine = failure_of(request.pulled)
    told = failure_of(request.waiting)
    assert (told.cause, told.stage) == ("Timeout", stage)
    if stage != "scatter":
        assert mine.detail == told.detail
    hasty.d.abort(request.room, "done")
    hasty.prefill.fault("lift")
    hasty.round_trip(next(rooms))

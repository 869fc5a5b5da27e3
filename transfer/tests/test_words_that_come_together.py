"""What an engine says in one breath is taken in that order: a call is under way with its frame."""

import pytest

from disagg_transfer.client import TransferFailed
from disagg_transfer.client.line import Answers


def failed(call):
    with pytest.raises(TransferFailed) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_stream_that_is_given_up_as_it_is_asked_for_is_told_and_holds_nothing(
    pair, rooms, kit, how
):
    room, engine = next(rooms), pair.d._conversation
    number, opening = engine.stream(room, peer=pair.peer, expect=kit.items, have={})
    if how == "close":
        ending = engine.close_stream(number, "no more of it", tell=True)
    else:
        ending = engine.abort(room, "no more of it", stopped=True).frame
    pair.d._line.send(opening + ending)

    def serve():
        """Prefill learns it as it begins, or later."""
        pair.offer(room, pair.payloads())
        pair.p.wait_released(room, 10)

    told = failed(serve)
    assert (told.cause, "no more of it" in told.detail) == ("Aborted", True)
    assert pair.decode.transfers() == []
    assert pair.decode.report().arena.used == 0
    pair.round_trip(next(rooms))


def test_a_wait_for_the_release_of_what_is_aborted_in_the_same_breath_says_so(pair, rooms):
    room, engine = next(rooms), pair.p._conversation
    pair.p.begin(room)
    asked = engine.wait_released(room, 10)
    ended = engine.abort(room, "no more of it", stopped=True)
    answers = Answers()
    pair.p._line.open(asked.call, asked.frame + ended.frame, answers)
    told = failed(lambda: asked.answered(pair.p._line.take(answers)))
    assert (told.cause, "no more of it" in told.detail) == ("Aborted", True)

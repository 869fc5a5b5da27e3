"""A router sends a request to both sides; when one refuses its copy, the other learns it at once."""

import time

import pytest

from disagg_transfer.agent.tombstones import MAX_ROOMS, Tombstones
from disagg_transfer.client import TransferFailed
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.local import LocalAgent

WORDS = "prefill refused the request: the prompt is too long"


def failure_of(work, *args, within_s=1.0):
    started = time.monotonic()
    with pytest.raises(TransferFailed) as caught:
        work(*args)
    assert time.monotonic() - started < within_s
    return caught.value


def told(failure):
    return failure.cause, failure.stage, failure.detail, failure.peer_pod


def test_a_room_refused_before_it_begins_fails_its_late_claim(pair, rooms):
    room = next(rooms)
    pair.p.refuse(room, detail=WORDS)
    assert told(failure_of(pair.pull, room)) == ("Aborted", "queue", WORDS, "prefill")


def test_a_room_refused_after_it_is_wanted_fails_the_pull(pair, rooms, kit):
    room = next(rooms)
    pulled = kit.in_thread(pair.pull, room)
    kit.until(lambda: pair.claimed(room))
    pair.p.refuse(room, detail=WORDS)
    assert told(failure_of(pulled.result, 2)) == ("Aborted", "queue", WORDS, "prefill")


@pytest.mark.parametrize("offered", [False, True])
def test_decode_s_refusal_ends_what_prefill_has_begun(pair, rooms, kit, offered):
    room = next(rooms)
    if offered:
        pair.offer(room, pair.payloads())
    else:
        pair.p.begin(room)
    waiting = kit.in_thread(pair.p.wait_released, room, 10)
    pair.d.refuse(room, peer=pair.peer, detail="decode is full")
    expected = ("Aborted", "queue", "decode is full", "decode")
    assert told(failure_of(waiting.result, 2)) == expected
    assert pair.prefill.report().arena.used == 0


def test_decode_s_refusal_ends_what_prefill_will_begin(pair, rooms):
    room = next(rooms)
    pair.d.refuse(room, peer=pair.peer, detail="decode is full")
    pair.round_trip(next(rooms))  # later on the same session, so the refusal is in
    expected = ("Aborted", "queue", "decode is full", "decode")
    assert told(failure_of(pair.p.begin, room)) == expected


def test_a_refusal_finds_a_prefill_agent_whose_engine_is_away(pair, rooms, kit):
    pair.p.close()
    kit.until(lambda: not pair.prefill.report().engine.connected)
    room = next(rooms)
    pair.d.refuse(room, peer=pair.peer, detail="decode is full")
    pair.p = kit.connect(pair.prefill, "prefill", pair.parts)
    pair.round_trip(next(rooms))
    assert failure_of(pair.p.begin, room).cause == "Aborted"


@pytest.mark.parametrize("begun", [False, True])
def test_a_room_that_another_decode_pod_claims_is_not_refused(pair, rooms, kit, tmp_path, begun):
    room = next(rooms)
    with LocalAgent(tmp_path, role="decode", pod="rival", peers=[pair.peer]) as rival:
        engine = kit.connect(rival, "decode", pair.parts)
        kit.until(lambda: rival.report().ready)
        pulled = kit.in_thread(pair.pull, room)
        kit.until(lambda: pair.claimed(room))
        # Prefill may read the rival's words of the same moment first. What had come before it
        # answered this, it has read.
        pair.prefill.report()
        if begun:
            pair.p.begin(room)
        engine.refuse(room, peer=pair.peer, detail="the rival does not want it")
        failure = failure_of(lambda: engine.pull(room, peer=pair.peer, expect=pair.items))
        assert "claimed already, by decode" in failure.detail
        payloads = pair.payloads()
        pair.offer(room, payloads, begin=not begun)
        assert bytes(pulled.result(5).payloads["kv"].view) == payloads["kv"]
        pair.d.release(room)
        pair.p.wait_released(room, 1)
        engine.close()


def test_refusing_a_second_request_of_a_room_leaves_the_first_alone(pair, rooms, kit):
    room = next(rooms)
    pair.p.begin(room)
    pair.p.refuse(room, detail="prefill refused another one")
    pulled = kit.in_thread(pair.pull, room)
    kit.until(lambda: pair.leased(room))
    pair.d.refuse(room, peer=pair.peer, detail="decode refused another one")
    payloads = pair.payloads()
    pair.offer(room, payloads, begin=False)
    assert bytes(pulled.result(5).payloads["kv"].view) == payloads["kv"]
    pair.d.release(room)
    pair.p.wait_released(room, 1)


def failure(detail):
    return TransferFailed(Cause.ABORTED, stage=Stage.QUEUE, detail=detail)


def test_a_room_s_first_word_stands_and_is_told_once():
    stones = Tombstones(keep_s=10)
    stones.put(1, failure("first"), now=0)
    stones.put(1, failure("second"), now=1)
    assert stones.take(1).detail == "first"
    assert stones.take(1) is None


def test_rooms_given_up_are_bounded_in_number_and_age():
    stones = Tombstones(keep_s=10)
    for room in range(MAX_ROOMS + 1):
        stones.put(room, failure("full"), now=room)
    assert len(stones) == MAX_ROOMS
    assert stones.take(0) is None
    stones.sweep(MAX_ROOMS + 5)
    assert list(stones) == list(range(MAX_ROOMS - 5, MAX_ROOMS + 1))


def test_a_pull_from_a_pod_whose_engine_is_away_fails_soon(pair, rooms, kit):
    pair.p.close()
    kit.until(lambda: not pair.prefill.report().engine.connected)
    failure = failure_of(pair.pull, next(rooms), within_s=5.0)  # grace 1 s, one look each second
    assert (failure.cause, failure.stage) == ("EngineLost", "bootstrap")
    assert "no engine is registered with the agent of prefill pod prefill" in failure.detail
    pair.p = kit.connect(pair.prefill, "prefill", pair.parts)
    pair.round_trip(next(rooms))


def test_offers_fail_soon_while_no_decode_engine_is_there(pair, rooms, kit):
    pair.d.close()
    kit.until(lambda: not pair.decode.report().engine.connected)
    room = next(rooms)
    pair.offer(room, pair.payloads())
    failure = failure_of(pair.p.wait_released, room, 20, within_s=8.0)  # 5 s, swept each 0.25 s
    assert (failure.cause, failure.stage) == ("EngineLost", "queue")
    assert "no decode engine" in failure.detail
    pair.d = kit.connect(pair.decode, "decode", pair.parts)
    pair.round_trip(next(rooms))

"""Two agent processes, real NIXL on loopback, engines that are threads of the test."""

import time

import pytest

from disagg_transfer.client import ArenaFull, TransferFailed
from disagg_transfer.errors import SettingsError


def row(agent, state_type):
    return next(row for row in agent.report().state_types if row.type == state_type)


def pair_of(agent, state_type):
    """The row's account of the session's two agents."""
    (pair,) = (p for p in row(agent, state_type).pairs if p.prefill_pod and p.decode_pod)
    assert (pair.prefill_pod, pair.decode_pod) == ("prefill", "decode")
    return pair


def test_every_state_type_arrives_byte_for_byte(pair, rooms):
    for _ in range(3):
        arrival = pair.round_trip(next(rooms))
        assert arrival.aux == b"first token"
        assert arrival.prefill_pod == "prefill"
        assert {n: p.items for n, p in arrival.payloads.items()} == pair.items


def test_a_pull_may_come_before_prefill_begins(pair, rooms, kit):
    room, payloads = next(rooms), pair.payloads()
    pulled = kit.in_thread(pair.pull, room)
    kit.until(lambda: pair.claimed(room))
    pair.offer(room, payloads)
    arrival = pulled.result(10)
    assert {n: bytes(p.view) for n, p in arrival.payloads.items()} == payloads
    pair.d.release(room)
    pair.p.wait_released(room, 5)


def test_payloads_of_many_pieces_arrive_whole(pair, rooms):
    items = {**pair.items, "kv": 5000}  # 20 MiB: three pieces
    room, payloads = next(rooms), pair.payloads(items)
    pair.offer(room, payloads, items=items)
    assert bytes(pair.pull(room, items).payloads["kv"].view) == payloads["kv"]
    pair.d.release(room)
    pair.p.wait_released(room, 5)


def test_many_requests_at_once_keep_to_their_own_bytes(pair, rooms, kit):
    futures = [kit.in_thread(pair.round_trip, next(rooms)) for _ in range(16)]
    for future in futures:
        future.result(30)


@pytest.mark.parametrize("state_type", ["kv", "swa", "nsa", "mamba"])
def test_a_withheld_state_type_times_out_by_its_name(hasty, rooms, kit, state_type):
    before = row(hasty.decode, state_type)
    hasty.prefill.fault("withhold", state_type)
    assert hasty.prefill.report().faults == (f"withhold:{state_type}",)
    room = next(rooms)
    hasty.offer(room, hasty.payloads())
    started = time.monotonic()
    with pytest.raises(TransferFailed) as caught:
        hasty.pull(room)
    assert 0.9 < time.monotonic() - started < 2
    failure = caught.value
    assert (failure.cause, failure.stage) == ("Timeout", "notify")
    assert (failure.state_type, failure.peer_pod) == (state_type, "prefill")
    with pytest.raises(TransferFailed, match="Timeout in stage notify"):
        hasty.p.wait_released(room, 1)
    for agent in (hasty.decode, hasty.prefill):
        told = pair_of(agent, state_type).last_failure
        assert (told.room, told.stage) == (room, "notify")
        component = next(part.name for part in hasty.parts if part.state_type == state_type)
        assert told.detail.startswith(f"no offer of component {component} within 1 s; not arrived:")
    after = row(hasty.decode, state_type)
    assert (after.timeouts, after.failures) == (before.timeouts + 1, before.failures + 1)
    others = {"kv", "swa", "nsa", "mamba"} - {state_type}
    assert all(
        getattr(row(hasty.decode, other).last_failure, "room", None) != room for other in others
    )
    hasty.prefill.fault("lift")
    hasty.round_trip(next(rooms))
    for agent in (hasty.decode, hasty.prefill):
        healed = pair_of(agent, state_type)
        assert healed.last_success > healed.last_failure.time


@pytest.mark.parametrize("state_type", ["kv", "swa", "nsa", "mamba"])
def test_an_offer_said_twice_fails_by_its_own_cause_on_both_sides(pair, rooms, kit, state_type):
    pair.prefill.fault("duplicate", state_type)
    room = next(rooms)

    def serve():
        pair.offer(room, pair.payloads())
        pair.p.wait_released(room, 5)

    def take():
        pair.pull(room)
        pair.d.release(room)

    for side in (kit.in_thread(take), kit.in_thread(serve)):
        with pytest.raises(TransferFailed, match="DuplicatePayload"):
            side.result(5)
    pair.p.abort(room, "its offers failed")
    pair.prefill.fault("lift")
    pair.round_trip(next(rooms))


@pytest.mark.parametrize("state_type", ["kv", "swa", "nsa", "mamba"])
def test_zeroed_bytes_are_a_digest_mismatch(pair, rooms, state_type):
    pair.prefill.fault("zero", state_type)
    room = next(rooms)
    pair.offer(room, pair.payloads())
    with pytest.raises(TransferFailed) as caught:
        pair.pull(room)
    assert (caught.value.cause, caught.value.state_type) == ("DigestMismatch", state_type)
    with pytest.raises(TransferFailed, match="DigestMismatch"):
        pair.p.wait_released(room, 1)


def test_with_the_check_off_zeroed_bytes_arrive(tmp_path, rooms, kit):
    with kit.agents(tmp_path, both={"integrity": "off", "faults": True}) as pair:
        pair.prefill.fault("zero", "dsa")
        room = next(rooms)
        payloads = pair.payloads()
        pair.offer(room, payloads)
        taken = {n: bytes(p.view) for n, p in pair.pull(room).payloads.items()}
        assert taken == {**payloads, "nsa": bytes(len(payloads["nsa"]))}


def test_a_room_that_prefill_never_begins_times_out_in_the_queue(hasty, rooms):
    room = next(rooms)
    with pytest.raises(TransferFailed) as caught:
        hasty.pull(room)
    assert (caught.value.cause, caught.value.stage) == ("Timeout", "queue")
    with pytest.raises(TransferFailed, match="Timeout in stage queue"):
        hasty.p.begin(room)  # too late: decode has given up, and prefill need not compute


def test_offers_that_nobody_claims_expire_and_free_their_memory(hasty, rooms, kit):
    room = next(rooms)
    hasty.offer(room, hasty.payloads())
    assert hasty.prefill.report().arena.used > 0
    with pytest.raises(TransferFailed, match=r"Timeout in stage queue.*no decode agent claimed"):
        hasty.p.wait_released(room, 10)
    assert hasty.prefill.report().arena.used == 0


def test_a_component_never_offered_is_missing_state(pair, rooms):
    room, payloads = next(rooms), pair.payloads()
    del payloads["mamba.temporal"]
    pair.offer(room, payloads)
    with pytest.raises(TransferFailed) as caught:
        pair.pull(room)
    failure = caught.value
    assert (failure.cause, failure.component) == ("MissingState", "mamba.temporal")
    with pytest.raises(TransferFailed, match="MissingState"):
        pair.p.wait_released(room, 1)


@pytest.mark.parametrize(("wanted", "cause"), [(4, "ShortPayload"), (2, "LongPayload")])
def test_a_payload_of_another_size_than_expected_is_refused(pair, rooms, wanted, cause):
    room = next(rooms)
    pair.offer(room, pair.payloads())
    with pytest.raises(TransferFailed) as caught:
        pair.pull(room, {**pair.items, "kv": wanted})
    assert (caught.value.cause, caught.value.state_type) == (cause, "kv")
    with pytest.raises(TransferFailed, match=cause):
        pair.p.wait_released(room, 1)


def test_an_offer_whose_extent_is_not_its_items_fails_both_sides(pair, rooms, kit):
    room = next(rooms)
    pulled = kit.in_thread(pair.pull, room)
    pair.p.begin(room)
    extent = pair.p.reserve(room, 4096, timeout_s=1)
    kit.until(lambda: pair.leased(room))
    with pytest.raises(TransferFailed, match="ShortPayload") as caught:
        pair.p.offer(room, "kv", extent, items=3, last=False)
    pair.p.abort(room, str(caught.value))
    with pytest.raises(TransferFailed, match="ShortPayload"):
        pulled.result(1)


def test_expect_must_name_every_registered_component(pair, rooms):
    with pytest.raises(TransferFailed, match="it must name every registered component"):
        pair.pull(next(rooms), {"kv": 3})


def test_a_failure_before_any_claim_is_told_of_both_pods_by_prefill_too(pair, rooms):
    room = next(rooms)
    pair.offer(room, pair.payloads())
    with pytest.raises(TransferFailed, match="it must name every registered component"):
        pair.pull(room, {"kv": 3})
    with pytest.raises(TransferFailed, match="it must name every registered component"):
        pair.p.wait_released(room, 5)
    assert pair_of(pair.prefill, "kv").last_failure.room == room


def test_a_room_in_flight_is_not_taken_twice(pair, rooms, kit):
    room, payloads = next(rooms), pair.payloads()
    pair.offer(room, payloads)
    with pytest.raises(TransferFailed, match=f"room {room} is in flight"):
        pair.p.begin(room)
    pair.pull(room)
    with pytest.raises(TransferFailed, match=f"room {room} is in flight"):
        pair.pull(room)
    pair.d.release(room)
    pair.p.wait_released(room, 1)
    pair.round_trip(room)  # ended: a retry may use it again


def test_a_second_decode_pod_cannot_claim_a_room(pair, rooms, kit, tmp_path):
    from disagg_transfer.local import LocalAgent

    room = next(rooms)
    with LocalAgent(tmp_path, role="decode", pod="rival", peers=[pair.peer]) as rival:
        engine = kit.connect(rival, "decode", pair.parts)
        pulled = kit.in_thread(pair.pull, room)
        kit.until(lambda: pair.claimed(room) and rival.report().ready)
        with pytest.raises(TransferFailed, match="claimed already, by decode"):
            engine.pull(room, peer=pair.peer, expect=pair.items)
        payloads = pair.payloads()
        pair.offer(room, payloads)
        assert bytes(pulled.result(5).payloads["kv"].view) == payloads["kv"]
        pair.d.release(room)
        pair.p.wait_released(room, 1)
        engine.close()


def test_an_abort_on_either_side_ends_the_other_at_once(pair, rooms, kit):
    room = next(rooms)
    pulled = kit.in_thread(pair.pull, room)
    pair.p.begin(room)
    kit.until(lambda: pair.leased(room))
    pair.p.abort(room, "the client went away")
    with pytest.raises(TransferFailed, match=r"Aborted.*the client went away"):
        pulled.result(1)

    room = next(rooms)
    pair.p.begin(room)
    pulled = kit.in_thread(pair.pull, room)
    waiting = kit.in_thread(pair.p.wait_released, room, 10)
    kit.until(lambda: pair.leased(room))
    pair.d.abort(room, "decode is full")
    for side in (pulled, waiting):
        with pytest.raises(TransferFailed, match=r"Aborted.*decode is full"):
            side.result(1)


def test_a_failed_room_s_late_claim_is_told_why(pair, rooms):
    room = next(rooms)
    pair.p.begin(room)
    pair.p.abort(room, "prompt too long")
    with pytest.raises(TransferFailed, match=r"Aborted.*prompt too long"):
        pair.pull(room)


def test_an_engine_that_scatters_too_late_is_told_not_to_use_the_bytes(hasty, rooms):
    room = next(rooms)
    hasty.offer(room, hasty.payloads())
    hasty.pull(room)
    with pytest.raises(TransferFailed, match="Timeout in stage scatter"):
        hasty.p.wait_released(room, 5)
    with pytest.raises(TransferFailed, match="Timeout in stage scatter"):
        hasty.d.release(room)


def test_a_full_arena_says_so(pair, rooms):
    room = next(rooms)
    pair.p.begin(room)
    with pytest.raises(ArenaFull, match=r"can never fit.*DISAGG_ARENA_BYTES"):
        pair.p.reserve(room, 1 << 30, timeout_s=1)
    pair.p.reserve(room, 60 << 20, timeout_s=1)
    with pytest.raises(ArenaFull, match="within 50 ms"):
        pair.p.reserve(room, 8 << 20, timeout_s=0.05)
    pair.p.abort(room, "done")


def test_a_fault_on_an_unknown_state_type_names_the_known_ones(pair):
    with pytest.raises(SettingsError, match=r"known: .*kv, mamba, .*nsa .alias dsa., .*swa"):
        pair.prefill.fault("zero", "conv")


def test_what_another_thread_has_cancelled_is_not_released(pair, rooms):
    room = next(rooms)
    pair.offer(room, pair.payloads())
    pair.pull(room)
    pair.d.cancel(room, "the client hung up")
    with pytest.raises(TransferFailed, match=r"Aborted.*the client hung up"):
        pair.d.release(room)
    with pytest.raises(TransferFailed, match=r"Aborted.*the client hung up"):
        pair.p.wait_released(room, 5)
    pair.round_trip(room)  # of the next request of that number nothing is left


def test_a_stream_released_before_it_has_arrived_fails(pair, rooms, kit):
    room = next(rooms)
    pair.p.begin(room)
    with pair.d.stream(room, peer=pair.peer, expect=pair.items) as stream:
        kit.until(lambda: pair.leased(room))
        with pytest.raises(TransferFailed, match="released before its last chunk was taken"):
            stream.release()
    with pytest.raises(TransferFailed, match=r"Aborted.*before its last chunk"):
        pair.p.wait_released(room, 5)


def test_an_agent_believes_no_release_of_what_has_not_arrived(pair, rooms, kit):
    room = next(rooms)
    pair.p.begin(room)
    with pair.d.stream(room, peer=pair.peer, expect=pair.items) as stream:
        kit.until(lambda: pair.leased(room))
        stream._say(stream.intake.release())
        with pytest.raises(TransferFailed, match="released and has not arrived"):
            next(stream)
    with pytest.raises(TransferFailed, match="released and has not arrived"):
        pair.p.wait_released(room, 5)


def test_a_client_keeps_nothing_of_what_has_ended(pair, rooms, kit):
    kept = pair.d._conversation
    pair.round_trip(next(rooms))
    for ends in (pair.d.abort, pair.d.cancel):
        room = next(rooms)
        pair.offer(room, pair.payloads())
        pair.pull(room)
        assert [stream.room for stream in kept._streams.values()] == [room]
        ends(room, "enough")
        with pytest.raises(TransferFailed):
            pair.d.release(room)
    room = next(rooms)
    pair.p.begin(room)
    pair.p.abort(room, "enough")
    with pytest.raises(TransferFailed):
        pair.pull(room)
    assert not kept._streams

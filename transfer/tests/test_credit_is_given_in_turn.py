"""Credit for reads of one prefill pod, and the share of prefill's arena for one decode pod."""

import asyncio
import contextlib
import os

import pytest

from disagg_transfer.agent.credits import Credits
from disagg_transfer.client import ArenaFull
from disagg_transfer.limits import CreditLimits
from disagg_transfer.local import LocalAgent

MIB = 1 << 20


@pytest.fixture
def credit():
    return Credits(CreditLimits(nbytes=100, reads=3))


async def test_who_asks_first_is_served_first_though_a_smaller_one_would_fit(credit):
    served = []

    async def ask(name, nbytes):
        await credit.take(nbytes)
        served.append(name)

    assert credit.take_now(60)
    tasks = [asyncio.create_task(ask(name, n)) for name, n in (("big", 90), ("small", 10))]
    await asyncio.sleep(0)
    assert not credit.take_now(1)
    assert (served, credit.waiting) == ([], 2)
    credit.give(60)
    await asyncio.gather(*tasks)
    assert (served, credit.waiting) == (["big", "small"], 0)


async def test_reads_are_counted_however_small(credit):
    assert [credit.take_now(1) for _ in range(4)] == [True, True, True, False]
    credit.give(1)
    assert credit.take_now(1)


async def test_one_read_larger_than_all_credit_may_go_alone(credit):
    assert credit.take_now(1000)
    assert not credit.take_now(1)
    credit.give(1000)
    assert credit.take_now(1)
    assert not credit.take_now(1000)


async def test_one_that_gives_up_waiting_makes_way_and_keeps_nothing(credit):
    assert credit.take_now(100)
    first = asyncio.create_task(credit.take(100))
    second = asyncio.create_task(credit.take(10))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    credit.give(100)
    await second
    assert credit.in_use == "10 of 100 bytes and 1 of 3 reads"


async def test_one_that_gives_up_as_its_turn_comes_gives_it_back(credit):
    assert credit.take_now(100)
    waiting = asyncio.create_task(credit.take(100))
    await asyncio.sleep(0)
    credit.give(100)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert credit.in_use == "0 of 100 bytes and 0 of 3 reads"


def test_requests_pass_one_by_one_where_there_is_credit_for_one_read(tmp_path, rooms, kit):
    env = {"DISAGG_CREDITS": '{"bytes": 1, "reads": 1}'}
    with kit.agents(tmp_path, decode={"env": env}) as pair:
        futures = [kit.in_thread(pair.round_trip, next(rooms)) for _ in range(16)]
        for future in futures:
            future.result(30)
        assert pair.decode.report().arena.used == 0


def test_a_decode_pod_that_takes_nothing_out_leaves_half_of_the_arena_to_others(
    tmp_path, rooms, kit
):
    parts = (kit.part("kv", item_bytes=MIB),)
    both = {"timeouts": {"default": 60}}
    tiny = {"arena_bytes": MIB}  # room for one chunk, which its engine never gives back
    large = {"arena_bytes": 16 * MIB}
    with (
        kit.agents(tmp_path, parts=parts, both=both, prefill=large, decode=tiny) as pair,
        LocalAgent(tmp_path / "b", role="decode", pod="b", peers=[pair.peer]) as sound,
        contextlib.ExitStack() as stack,
    ):
        engine = kit.connect(sound, "decode", parts)
        kit.until(lambda: sound.report().ready and pair.decode.report().ready)

        def begin():
            room = next(rooms)
            kit.in_thread(pair.d.pull, room, peer=pair.peer, expect={"kv": 1})
            pair.p.begin(room)
            kit.until(lambda: any(row["room"] == room for row in claimed(pair)))
            return room

        def offered():
            room = begin()
            extent = pair.p.reserve(room, MIB, timeout_s=0.2)
            pair.p.offer(room, "kv", extent, items=1, last=True)

        def until_refused():
            for _ in range(17):
                offered()

        pair.p.begin(room := next(rooms))
        pair.p.offer(room, "kv", pair.p.reserve(room, MIB, timeout_s=1), items=1, last=True)
        hoard = pair.d.stream(room, peer=pair.peer, expect={"kv": 1})
        hoarded = next(iter(stack.enter_context(hoard)))
        with pytest.raises(ArenaFull) as caught:
            until_refused()
        assert hoarded.items == 1
        # Eight are held, one is refused, and one is with the hoarder.
        assert len(claimed(pair)) == 10
        assert f"decode pod decode holds {8 * MIB} of the arena's {16 * MIB}" in str(caught.value)
        assert "its share is 50% while there are 2 decode pods (DISAGG_CREDITS)" in str(
            caught.value
        )

        room, payload = next(rooms), os.urandom(MIB)
        pulled = kit.in_thread(engine.pull, room, peer=pair.peer, expect={"kv": 1})
        pair.p.begin(room)
        extent = pair.p.reserve(room, MIB, timeout_s=1)
        extent.view[:] = payload
        pair.p.offer(room, "kv", extent, items=1, last=True)
        assert bytes(pulled.result(5).payloads["kv"].view) == payload
        engine.release(room)
        engine.close()


def claimed(pair):
    return [row for row in pair.prefill.transfers() if row["peer_pod"]]

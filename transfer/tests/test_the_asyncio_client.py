"""The asyncio client: the same requests, in one event loop; both clients know the same calls."""

import asyncio
import inspect
import os

import pytest

from disagg_transfer.client import AgentClient, TransferFailed
from disagg_transfer.client.asynchronous import AsyncAgentClient


def calls_of(kind):
    return {
        name: tuple(inspect.signature(getattr(kind, name)).parameters)
        for name, value in vars(kind).items()
        if not name.startswith("_") and not isinstance(value, property)
    }


def test_both_clients_have_the_same_calls_with_the_same_parameters():
    assert calls_of(AsyncAgentClient) == calls_of(AgentClient)


@pytest.fixture
async def ends(pair, kit):
    """Asyncio engines in place of the blocking ones."""
    ends = [
        await AsyncAgentClient.connect(
            agent.socket_path,
            role=role,
            model="tiny",
            components=pair.parts,
            page_size=16,
            timeout_s=10,
        )
        for agent, role in ((pair.prefill, "prefill"), (pair.decode, "decode"))
    ]
    await asyncio.to_thread(kit.until, lambda: pair.decode.report().ready)
    yield ends
    for end in ends:
        await end.close()


async def hand_over(prefill, room, payloads, items):
    await prefill.begin(room)
    names = list(payloads)
    for name in names:
        extent = await prefill.reserve(room, len(payloads[name]), timeout_s=5)
        extent.view[:] = payloads[name]
        last = name == names[-1]
        await prefill.offer(
            room, name, extent, items=items[name], last=last, aux=b"tok" if last else b""
        )
    await prefill.wait_released(room, 10)


async def take(decode, pair, room):
    taken = dict.fromkeys(pair.items, b"")
    async with decode.stream(room, peer=pair.peer, expect=pair.items) as chunks:
        async for chunk in chunks:
            taken[chunk.component] += bytes(chunk.view)
    assert (chunks.aux, chunks.prefill_pod) == (b"tok", "prefill")
    return taken


async def test_requests_side_by_side_arrive_byte_for_byte(pair, ends, rooms):
    prefill, decode = ends

    async def journey():
        room, payloads = next(rooms), pair.payloads()
        async with asyncio.TaskGroup() as group:
            group.create_task(hand_over(prefill, room, payloads, pair.items))
            taken = group.create_task(take(decode, pair, room))
        assert taken.result() == payloads

    await asyncio.gather(*(journey() for _ in range(8)))


async def test_a_pull_is_a_copy_until_it_is_released(pair, ends, rooms):
    prefill, decode = ends
    room, payloads = next(rooms), pair.payloads()
    sending = asyncio.create_task(hand_over(prefill, room, payloads, pair.items))
    arrival = await decode.pull(room, peer=pair.peer, expect=pair.items)
    assert {name: bytes(p.view) for name, p in arrival.payloads.items()} == payloads
    assert not sending.done()
    await decode.release(room)
    await sending
    with pytest.raises(TransferFailed, match="has not arrived, or has ended"):
        await decode.release(room)


async def test_a_cancelled_task_gives_its_request_up(pair, ends, rooms, kit):
    prefill, decode = ends
    room = next(rooms)
    await prefill.begin(room)
    pulling = asyncio.create_task(take(decode, pair, room))
    await asyncio.to_thread(kit.until, lambda: pair.leased(room))
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    with pytest.raises(TransferFailed, match="Aborted"):
        await prefill.wait_released(room, 5)


async def test_a_lost_agent_fails_what_is_under_way(tmp_path, kit, rooms):
    with kit.agents(tmp_path) as pair:
        pair.close()
        client = await AsyncAgentClient.connect(
            pair.prefill.socket_path,
            role="prefill",
            model="tiny",
            components=pair.parts,
            page_size=16,
            timeout_s=10,
        )
        room = next(rooms)
        await client.begin(room)
        extent = await client.reserve(room, 4096, timeout_s=5)
        extent.view[:] = os.urandom(4096)
        waiting = asyncio.create_task(client.wait_released(room, 30))
        await asyncio.sleep(0)
        pair.prefill.process.kill()
        with pytest.raises(TransferFailed, match="EngineLost"):
            await waiting
        await asyncio.wait_for(client.lost.wait(), 1)
        with pytest.raises(TransferFailed, match="connect again"):
            await client.wanted(room)
        await client.close()

"""Turns: so many at a time, by rank and then in order, and none is lost with a waiter that left."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.pacing import Turns


async def held(turns, order, rank, name, release):
    async with turns.take(rank):
        order.append(name)
        await release.wait()


async def test_who_waits_is_served_by_rank_and_then_in_order():
    turns, order, release = Turns(1), [], asyncio.Event()
    names = [(0, "first"), (1, "guard"), (0, "pod"), (1, "event"), (0, "status")]
    async with asyncio.TaskGroup() as group:
        for rank, name in names:
            group.create_task(held(turns, order, rank, name, release))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == ["first"]
        release.set()
    assert order == ["first", "pod", "status", "guard", "event"]


@given(st.integers(1, 3), st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=12))
def test_turns_of_waiters_that_leave_go_to_others(limit, waiters):
    async def run():
        turns, order, release = Turns(limit), [], asyncio.Event()
        tasks = [
            asyncio.create_task(held(turns, order, rank, name, release))
            for name, (rank, _) in enumerate(waiters)
        ]
        await asyncio.sleep(0)  # the first ones were given their turn, and do not run yet
        for task, (_, leaves) in zip(tasks, waiters, strict=True):
            if leaves:
                task.cancel()
        release.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, return_exceptions=True)
            assert len(order) >= sum(not leaves for _, leaves in waiters)
            again = [asyncio.create_task(held(turns, [], 0, "", release)) for _ in range(limit)]
            await asyncio.gather(*again)

    asyncio.run(run())


async def test_a_turn_given_to_a_waiter_that_is_cancelled_is_given_on():
    turns = Turns(1)
    async with turns.take(0):
        waiter = asyncio.create_task(held(turns, [], 0, "", asyncio.Event()))
        await asyncio.sleep(0)
    waiter.cancel()  # the turn is its own already, and it does not know
    async with asyncio.timeout(5), turns.take(0):
        assert waiter.done() or waiter.cancelling()

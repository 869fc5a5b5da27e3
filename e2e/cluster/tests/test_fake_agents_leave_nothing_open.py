"""A fake agent that stops closes the connection that just comes: else another test pays for it."""

import asyncio
import gc
import socket

import pytest

from disagg_fleet import FakeAgent
from disagg_fleet.fake_reports import report
from disagg_transfer.contract import HTTP_PORT

ADDRESS = "127.1.250.9"  # of no fake kubelet's network


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_at_any_turn_of_its_end_is_closed(turns):
    agent = FakeAgent("pod", ADDRESS, report("pod"), b"00" * 32)
    await agent.start()
    with socket.create_connection((ADDRESS, HTTP_PORT)):
        for _ in range(turns):
            await asyncio.sleep(0)
        await agent.stop()
    gc.collect()  # what is left open is a warning here, and so an error

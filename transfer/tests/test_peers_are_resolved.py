"""The addresses that a peer's name stands for."""

import pytest

from disagg_transfer.agent.control import _resolve
from disagg_transfer.settings import Address


@pytest.mark.parametrize("host", ["::1", "0:0:0:0:0:0:0:1", "0::0001"])
async def test_one_address_is_one_peer_however_it_is_written(host):
    """Two links to one pod would be two sessions that replace each other."""
    assert await _resolve(Address(host=host, port=7)) == {Address(host="::1", port=7)}


async def test_a_name_is_looked_up():
    assert Address(host="127.0.0.1", port=7) in await _resolve(Address(host="localhost", port=7))


@pytest.mark.parametrize("host", ["nobody.invalid", "..", "a" * 64])
async def test_a_name_that_is_none_has_no_address(host):
    assert await _resolve(Address(host=host, port=7)) == set()

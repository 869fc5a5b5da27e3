"""How the process begins, and how it ends when it may not lead any more."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from disagg_operator import __main__ as main_module
from disagg_operator.errors import ApiUnavailableError, LeadershipLostError
from disagg_operator.metrics import Metrics


async def test_a_server_that_is_away_at_the_start_is_waited_for(monkeypatch):
    monkeypatch.setattr(main_module, "CRD_RECHECK_S", 0.0)
    answers = [ApiUnavailableError("away", code=503), False, True]

    class Away:
        async def serves_resource(self):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    await main_module._until_served(Away())
    assert answers == []


class FakeElection:
    """Won, and lost again as soon as the work has begun."""

    def __init__(self, **_):
        self.leads = lambda: False

    async def win(self):
        pass

    async def hold(self):
        await asyncio.sleep(0)


async def test_the_work_has_ended_before_the_process_says_that_it_lost_the_lease(monkeypatch):
    ended = []

    async def work(runtime, **_):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)  # kopf stops its loops
            ended.append(runtime.gateway.permitted())

    async def configuration():
        pass

    monkeypatch.setattr(main_module, "Election", FakeElection)
    monkeypatch.setattr(main_module, "Gateway", lambda **_: contextlib.AsyncExitStack())
    monkeypatch.setattr(main_module, "client_configuration", configuration)
    monkeypatch.setattr(main_module, "operate", work)
    runtime = SimpleNamespace(metrics=Metrics(), instance="here", gateway=SimpleNamespace())
    with pytest.raises(LeadershipLostError, match="Lease ns/disagg was not renewed in time"):
        await main_module.lead(runtime, lease=("ns", "disagg"))
    assert ended == [False]
    assert not runtime.metrics.leads

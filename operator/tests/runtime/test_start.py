"""How the process begins."""

from disagg_operator import __main__ as main_module
from disagg_operator.errors import ApiUnavailableError


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

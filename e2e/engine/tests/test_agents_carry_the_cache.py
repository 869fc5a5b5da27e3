"""Real agents between two engines: the whole cache arrives, or the request ends by name."""

import asyncio
import itertools
import time
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from aiohttp.test_utils import TestClient, TestServer

from disagg_engine.engine import Engine
from disagg_engine.layout import probe_layout
from disagg_engine.refusals import MAX_UNTOLD, Refusals
from disagg_engine.requests import Bootstrap
from disagg_engine.server import build_app
from disagg_engine.settings import Settings
from disagg_transfer.client import TransferFailed
from disagg_transfer.contract import Cause, Stage
from disagg_transfer.local import LocalAgent

ROOMS = itertools.count(2**40)
# Short enough to fail a withheld payload soon, long enough for two busy cores otherwise.
TIMEOUTS = {"default": 20, "stages": {"notify": 1}}
REGISTERED_S = 20
MODEL = "tiny-qwen3-next"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    prefill: Engine
    decode: Engine
    prefill_agent: LocalAgent
    decode_agent: LocalAgent

    def body(self, prompt, **more):
        sampling = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
        return {
            "input_ids": prompt,
            "sampling_params": sampling,
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": self.prefill_agent.control_port,
            "bootstrap_room": next(ROOMS),
            **more,
        }

    @asynccontextmanager
    async def served(self):
        async with (
            TestClient(TestServer(build_app(self.prefill))) as prefill,
            TestClient(TestServer(build_app(self.decode))) as decode,
        ):
            yield prefill, decode

    async def ask(self, prompt, **more):
        """As a router does: the same body to both; returns (status, answer) of each."""
        body = self.body(prompt, **more)
        async with self.served() as clients:
            return await asyncio.gather(*(post(client, body) for client in clients))


async def post(client, body):
    async with client.post("/generate", json=body) as reply:
        return reply.status, await reply.json()


def wait_until(done, *, what, within=REGISTERED_S):
    deadline = time.monotonic() + within
    pause = 0.01
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(pause)  # paces the polling of a condition
    return True


def make_pair(stack, folder, model, *, dropped=(), chunk_bytes=8 << 20, **options):
    options = {"timeouts": TIMEOUTS, "arena_bytes": 8 << 20, "faults": True, **options}
    prefill_agent = stack.enter_context(LocalAgent(folder / "p", role="prefill", **options))
    peers = [f"127.0.0.1:{prefill_agent.control_port}"]
    decode_agent = stack.enter_context(
        LocalAgent(folder / "d", role="decode", peers=peers, **options)
    )
    engines = [
        make_engine(
            stack,
            model,
            agent,
            role=role,
            dropped=dropped if role == "decode" else (),
            chunk_bytes=chunk_bytes,
        )
        for role, agent in (("prefill", prefill_agent), ("decode", decode_agent))
    ]
    return Pair(
        prefill=engines[0],
        decode=engines[1],
        prefill_agent=prefill_agent,
        decode_agent=decode_agent,
    )


def make_engine(stack, model, agent, *, role, dropped, chunk_bytes):
    settings = Settings(
        role=role,
        model=model.name,
        model_id=model.name,
        socket=str(agent.socket_path),
        max_pages=64,
        max_slots=4,
        fault_drop_components=dropped,
        chunk_bytes=chunk_bytes,
    )
    engine = Engine(settings)
    stack.callback(engine.close)
    engine.load(model)
    wait_until(lambda: engine.trouble is None, what=f"{role} engine registers")
    return engine


@pytest.fixture(scope="session")
def unchecked(built, tmp_path_factory):
    """A pair per model with digests off: nothing but the tokens can tell a spoiled payload."""
    made = {}
    with ExitStack() as stack:

        def get(name):
            if name not in made:
                folder = tmp_path_factory.mktemp("pair")
                model = built(name).runner.model
                made[name] = make_pair(stack, folder, model, integrity="off")
            return made[name]

        yield get


@pytest.fixture(scope="session")
def checked_pair(built, tmp_path_factory):
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("checked")
        yield make_pair(stack, folder, built(MODEL).runner.model)


@pytest.fixture
def checked(checked_pair):
    """One pair for all tests, as a test finds it: healthy and without faults."""
    yield checked_pair
    checked_pair.prefill_agent.fault("lift")
    for engine in (checked_pair.prefill, checked_pair.decode):
        wait_until(lambda engine=engine: engine.trouble is None, what="healthy again")


@pytest.fixture
def faulty(unchecked, model_name):
    pair = unchecked(model_name)
    yield pair
    pair.prefill_agent.fault("lift")


async def test_decode_over_agents_equals_one_process(unchecked, built, model_name):
    model = built(model_name)
    (prefill_status, first), (status, answer) = await unchecked(model_name).ask(model.prompt)
    assert (prefill_status, status) == (200, 200)
    assert first["output_ids"] == model.expected[:1]
    assert answer["output_ids"] == model.expected


async def test_a_zeroed_state_changes_the_tokens_when_unchecked(
    faulty, built, model_name, state_type
):
    model = built(model_name)
    faulty.prefill_agent.fault("zero", state_type)
    _, (status, answer) = await faulty.ask(model.prompt)
    assert status == 200
    assert answer["output_ids"] != model.expected


async def test_a_withheld_state_fails_the_request_by_name(faulty, built, model_name, state_type):
    model = built(model_name)
    faulty.prefill_agent.fault("withhold", state_type)
    (prefill_status, _), (status, answer) = await faulty.ask(model.prompt)
    assert (prefill_status, status) == (502, 502)
    error = answer["error"]
    assert (error["type"], error["stage"]) == ("Timeout", "notify")
    assert error["state_type"] == state_type
    assert f"state type {state_type}" in error["message"]
    faulty.prefill_agent.fault("lift")
    _, (status, answer) = await faulty.ask(model.prompt)
    assert (status, answer["output_ids"]) == (200, model.expected)


async def test_a_zeroed_state_is_refused_when_checked(checked, built):
    model = built(MODEL)
    checked.prefill_agent.fault("zero", "mamba")
    _, (status, answer) = await checked.ask(model.prompt)
    assert (status, answer["error"]["type"]) == (502, "DigestMismatch")
    checked.prefill_agent.fault("lift")
    _, (status, answer) = await checked.ask(model.prompt)
    assert (status, answer["output_ids"]) == (200, model.expected)


async def test_a_cache_in_many_chunks_passes_through_a_smaller_arena(built, tmp_path):
    model = built(MODEL)
    largest = max(
        layout.item_bytes for layout in probe_layout(model.runner.model.module, page_size=16)
    )
    arena_bytes = 2 * (-(-largest // 4096) * 4096)
    with ExitStack() as stack:
        pair = make_pair(
            stack, tmp_path, model.runner.model, chunk_bytes=1, arena_bytes=arena_bytes
        )
        layouts = pair.prefill.flow._pools.layouts
        whole = sum(each.items(len(model.prompt)) * each.item_bytes for each in layouts)
        assert whole > arena_bytes
        _, (status, answer) = await pair.ask(model.prompt)
        assert (status, answer["output_ids"]) == (200, model.expected)


async def test_many_requests_at_once_stay_apart(checked, built):
    model = built(MODEL)
    prompts = [model.prompt[:length] for length in (5, 16, 17, 33, 40, 43)]
    async with checked.served() as (prefill, decode):
        bodies = [checked.body(prompt) for prompt in prompts]
        answers = await asyncio.gather(
            *(post(client, body) for body in bodies for client in (prefill, decode))
        )
        alone = [await checked.ask(prompt) for prompt in prompts]
    got = [answer["output_ids"] for _, answer in answers[1::2]]
    assert got == [answer["output_ids"] for _, (_, answer) in alone]
    assert got[-1] == model.expected


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_engine_outlives_its_agent(checked, built, role):
    model = built(MODEL)
    engine, agent = {
        "prefill": (checked.prefill, checked.prefill_agent),
        "decode": (checked.decode, checked.decode_agent),
    }[role]
    lost = engine._session.client().lost
    await asyncio.to_thread(agent.restart)
    await asyncio.to_thread(wait_until, lost.is_set, what="the engine notices")
    await asyncio.to_thread(wait_until, lambda: engine.trouble is None, what="registered again")
    _, (status, answer) = await checked.ask(model.prompt)
    assert (status, answer.get("output_ids")) == (200, model.expected), answer


async def test_health_says_no_while_the_agent_is_away(checked):
    agent = checked.decode_agent
    agent.process.kill()
    agent.process.wait(10)
    engine = checked.decode
    await asyncio.to_thread(
        wait_until, lambda: engine.trouble is not None, what="the engine notices"
    )
    async with checked.served() as (prefill, decode):
        async with prefill.get("/health") as reply:
            assert reply.status == 200
        async with decode.get("/health") as reply:
            assert reply.status == 503
        status, answer = await post(decode, checked.body([1, 2, 3]))
    await asyncio.to_thread(agent.restart)
    assert (status, answer["error"]["type"]) == (503, "NotServing")


async def test_a_client_that_leaves_frees_prefill_at_once(checked):
    """Nobody pulls; the client gives up, and the prefill agent holds nothing any more."""
    async with checked.served() as (prefill, _):
        asked = asyncio.create_task(post(prefill, checked.body([1, 2, 3])))
        report = checked.prefill_agent.report
        used = lambda: report().arena.used > 0  # noqa: E731
        await asyncio.to_thread(wait_until, used, what="prefill has offered")
        asked.cancel()
        free = lambda: report().arena.used == 0  # noqa: E731
        await asyncio.to_thread(wait_until, free, what="the offer is withdrawn", within=5)


async def test_a_component_missing_on_one_side_is_named(built, tmp_path):
    model = built(MODEL)
    with ExitStack() as stack:
        pair = make_pair(stack, tmp_path, model.runner.model, dropped=("mamba.conv",))
        async with pair.served() as (_, decode):
            status, answer = await post(decode, pair.body(model.prompt))
    assert (status, answer["error"]["type"]) == (502, "LayoutMismatch")
    assert "mamba.conv" in answer["error"]["message"]


async def ask_apart(pair, prompt, *, prefill=None, decode=None):
    """As `ask`, with something else for one side; both have to answer within 2 s."""
    body = pair.body(prompt)
    async with pair.served() as clients, asyncio.timeout(2):
        bodies = ({**body, **(prefill or {})}, {**body, **(decode or {})})
        return await asyncio.gather(*map(post, clients, bodies))


SIDES = {"prefill": 0, "decode": 1}


def check_refused(answers, *, refuser, status, reason):
    refused, (other_status, answer) = answers if refuser == "prefill" else answers[::-1]
    assert refused[0] == status
    assert (other_status, answer["error"]["type"]) == (502, "Aborted"), answer
    assert reason in answer["error"]["message"]


@pytest.mark.parametrize("refuser", SIDES)
async def test_a_bad_request_on_one_side_ends_the_other(checked, built, refuser):
    answers = await ask_apart(checked, built(MODEL).prompt, **{refuser: {"n": 2}})
    reason = f"{refuser} refused the request: n is 2; this engine serves only 1"
    check_refused(answers, refuser=refuser, status=400, reason=reason)


@pytest.mark.parametrize("refuser", SIDES)
async def test_too_many_requests_on_one_side_end_the_other(checked, built, refuser, monkeypatch):
    monkeypatch.setattr(getattr(checked, refuser), "_in_flight", 64)
    answers = await ask_apart(checked, built(MODEL).prompt)
    reason = f"{refuser} refused the request: 64 requests are in flight"
    check_refused(answers, refuser=refuser, status=503, reason=reason)


@pytest.mark.parametrize("refuser", SIDES)
async def test_full_pools_on_one_side_end_the_other(checked, built, refuser, monkeypatch):
    flow = getattr(checked, refuser).flow
    monkeypatch.setattr(flow, "_settings", replace(flow._settings, queue_timeout_s=0.1))
    with flow._pools.hold(16 * flow._settings.max_pages, timeout_s=1):
        answers = await ask_apart(checked, built(MODEL).prompt)
    reason = f"the {refuser} engine gave up: no free pages of kv"
    check_refused(answers, refuser=refuser, status=503, reason=reason)


@pytest.mark.parametrize("refuser", SIDES)
async def test_a_side_whose_agent_is_away_tells_once_it_is_back(checked, built, refuser):
    """Prefill's claim or begin may come long before; registering ends the wait, no deadline."""
    engine, agent = getattr(checked, refuser), getattr(checked, f"{refuser}_agent")
    agent.process.kill()
    agent.process.wait(10)
    await asyncio.to_thread(wait_until, lambda: engine.trouble is not None, what="it notices")
    body = checked.body(built(MODEL).prompt)
    async with checked.served() as clients:
        asked = [asyncio.create_task(post(client, body)) for client in clients]
        await asked[SIDES[refuser]]
        await asyncio.to_thread(agent.restart)
        await asyncio.to_thread(wait_until, lambda: engine.trouble is None, what="registered")
        async with asyncio.timeout(3):
            answers = await asyncio.gather(*asked)
    reason = f"{refuser} refused the request: "
    check_refused(answers, refuser=refuser, status=503, reason=reason)


def test_untold_refusals_are_bounded_and_outlast_a_lost_agent():
    class Agent:
        def __init__(self, *, lost):
            self.lost, self.heard = lost, []

        def refuse(self, room, *, peer, detail):
            if self.lost:
                raise TransferFailed(Cause.ENGINE_LOST, stage=Stage.BOOTSTRAP, detail="gone")
            self.heard.append((room, peer, detail))

    refusals = Refusals("decode")
    for room in range(MAX_UNTOLD + 1):
        refusals.add(Bootstrap(host="p", port=1, room=room), "full")
    refusals.tell(Agent(lost=True))
    agent = Agent(lost=False)
    refusals.tell(agent)
    assert sorted(room for room, _, _ in agent.heard) == list(range(1, MAX_UNTOLD + 1))
    assert agent.heard[0][1:] == ("p:1", "decode refused the request: full")
    refusals.tell(agent)
    assert len(agent.heard) == MAX_UNTOLD


async def test_a_request_lost_with_the_agent_is_not_waited_for(checked, built):
    """Decode comes late, to a new agent that has never heard of the room."""
    body, agent = checked.body(built(MODEL).prompt), checked.prefill_agent
    async with checked.served() as (prefill, decode):
        asked = asyncio.create_task(post(prefill, body))
        used = lambda: agent.report().arena.used > 0  # noqa: E731
        await asyncio.to_thread(wait_until, used, what="prefill has offered")
        await asyncio.to_thread(agent.restart)
        status, answer = await asked
        assert (status, answer["error"]["type"]) == (502, "EngineLost")
        registered = lambda: agent.report().engine.connected  # noqa: E731
        await asyncio.to_thread(wait_until, registered, what="registered again")
        async with asyncio.timeout(3):
            status, answer = await post(decode, body)
    assert (status, answer["error"]["type"]) == (502, "Aborted")
    assert "prefill refused the request: EngineLost" in answer["error"]["message"]

"""Role mono: the HTTP dialect, without any agent."""

import asyncio
import json

import pytest
from aiohttp.test_utils import TestClient, TestServer

from disagg_engine import monolith
from disagg_engine.answers import Transcript
from disagg_engine.engine import Engine
from disagg_engine.models import load_model
from disagg_engine.requests import parse_completion
from disagg_engine.roles import Call
from disagg_engine.sampling import Token
from disagg_engine.server import build_app, main
from disagg_engine.settings import Settings, parse_settings

MODEL = "tiny-qwen3-next"


def greedy(count):
    return {"temperature": 0, "max_new_tokens": count, "ignore_eos": True}


@pytest.fixture
async def served(built):
    engine = Engine(Settings(role="mono", model=MODEL, model_id=MODEL))
    engine.load(built(MODEL).runner.model)
    async with TestClient(TestServer(build_app(engine))) as client:
        yield client


def events(text):
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


async def test_generate_equals_the_monolith(served, built):
    model = built(MODEL)
    body = {"input_ids": model.prompt, "sampling_params": greedy(24)}
    async with served.post("/generate", json=body) as reply:
        answer = await reply.json()
    assert (reply.status, answer["output_ids"]) == (200, model.expected)
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 24}
    assert answer["meta_info"]["prompt_tokens"] == len(model.prompt)


async def test_a_stream_grows_to_the_same_answer(served, built):
    model = built(MODEL)
    body = {"input_ids": model.prompt, "sampling_params": greedy(4), "stream": True}
    async with served.post("/generate", json=body) as reply:
        got = events(await reply.text())
    assert got[-1] == "[DONE]"
    chunks = [json.loads(each) for each in got[:-1]]
    assert [chunk["output_ids"] for chunk in chunks] == [
        model.expected[:count] for count in (1, 2, 3, 4)
    ]
    assert [bool(chunk["meta_info"]["finish_reason"]) for chunk in chunks] == [False] * 3 + [True]


async def test_a_stop_token_ends_the_answer(served, built):
    model = built(MODEL)
    sampling = {**greedy(24), "stop_token_ids": [model.expected[3]]}
    body = {"input_ids": model.prompt, "sampling_params": sampling}
    async with served.post("/generate", json=body) as reply:
        answer = await reply.json()
    assert answer["output_ids"] == model.expected[:4]
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": model.expected[3]}


async def test_completions_streamed_and_whole_say_the_same(served):
    body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    async with served.post("/v1/completions", json=body) as reply:
        whole = await reply.json()
    async with served.post("/v1/completions", json={**body, "stream": True}) as reply:
        chunks = [json.loads(each) for each in events(await reply.text())[:-1]]
    assert whole["object"] == "text_completion"
    assert whole["usage"] == {"prompt_tokens": 16, "completion_tokens": 8, "total_tokens": 24}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_character_cut_between_chunks_is_told_once_whole(built):
    model = built(MODEL)
    body = {"prompt": "x", "max_tokens": 4}
    call = Call(id="c", request=parse_completion(body, model.runner.model, disaggregated=False))
    transcript = Transcript(call, model.runner, limit=4)
    told = []
    for byte in [ord("h"), *"é".encode(), ord("!")]:
        transcript.tokens.append(Token(id=byte, logprob=0.0))
        told.append(transcript.completion_chunk(MODEL)["choices"][0]["text"])
    assert told == ["h", "", "é", "!"]


async def test_bad_input_is_a_400_that_names_the_field(served):
    async with served.post("/generate", json={"input_ids": [-1]}) as reply:
        error = (await reply.json())["error"]
    assert (reply.status, error["field"]) == (400, "input_ids[0]")
    async with served.post("/generate", data=b"{") as reply:
        assert reply.status == 400


async def test_what_a_router_asks_at_registration_is_answered(served):
    for path in ("/model_info", "/get_model_info", "/server_info", "/get_server_info"):
        async with served.get(path) as reply:
            assert (await reply.json())["model_path"] == MODEL
    async with served.get("/v1/models") as reply:
        assert (await reply.json())["data"][0]["id"] == MODEL
    for path in ("/health", "/health_generate"):
        async with served.get(path) as reply:
            assert reply.status == 200


async def test_too_many_requests_are_turned_away(built):
    settings = Settings(role="mono", model=MODEL, model_id=MODEL, max_requests=1)
    engine = Engine(settings)
    engine.load(built(MODEL).runner.model)
    body = {"input_ids": [1, 2], "sampling_params": greedy(40)}
    async with TestClient(TestServer(build_app(engine))) as client:
        replies = await asyncio.gather(*(client.post("/generate", json=body) for _ in range(3)))
        assert sorted(reply.status for reply in replies) == [200, 503, 503]


async def test_health_says_no_while_loading():
    engine = Engine(Settings(role="mono", model=MODEL, model_id=MODEL))
    async with TestClient(TestServer(build_app(engine))) as client:
        async with client.get("/health") as reply:
            assert reply.status == 503
            assert "loading" in (await reply.json())["error"]["message"]
        async with client.post("/generate", json={"input_ids": [1]}) as reply:
            assert reply.status == 503


def test_an_unknown_model_ends_the_server_with_its_name(caplog):
    assert main(["--role", "mono", "--model", "tiny-typo", "--port", "0"]) == 1
    assert "tiny-typo" in caplog.text
    assert "tiny-gpt-oss" in caplog.text


def test_the_environment_is_the_default_of_the_command_line():
    env = {"DISAGG_ROLE": "decode", "DISAGG_MODEL": "m", "DISAGG_SOCKET": "/s"}
    settings = parse_settings(["--max-pages", "7"], env)
    assert (settings.role, settings.model, settings.model_id) == ("decode", "m", "m")
    assert (settings.socket, settings.max_pages) == ("/s", 7)
    assert parse_settings(["--model", "path"], env).model_id == "m"


def test_the_monolith_prints_what_it_computes(capsys, built):
    model = built(MODEL)
    prompt = ",".join(map(str, model.prompt))
    assert monolith.main(["--model", MODEL, "--input-ids", prompt, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output_ids"] == model.expected


def test_weights_depend_on_the_seed_alone():
    one, same, other = (load_model("tiny-gpt-oss", seed=seed).module for seed in (3, 3, 4))
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(a.equal(b) for a, b, _ in pairs)
    assert not all(a.equal(c) for a, _, c in pairs)


def test_a_checkpoint_folder_is_served(tmp_path, built):
    model = built("tiny-gpt-oss")
    model.runner.model.module.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), seed=9)
    prompt, expected = model.prompt, model.expected
    runner = type(model.runner)(again)
    assert monolith.complete(runner, prompt, model.greedy) == expected

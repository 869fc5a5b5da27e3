"""A body is served whole, or refused by the name of the field that cannot be."""

import pytest

from disagg_engine.errors import BadRequestError
from disagg_engine.models import LoadedModel
from disagg_engine.requests import check_length, parse_completion, parse_generate
from disagg_engine.tokenizer import ByteTokenizer, NoTokenizer

MODEL = LoadedModel(
    name="m",
    module=None,
    tokenizer=ByteTokenizer(),
    stop_tokens=frozenset(),
    vocab_size=512,
    context_tokens=100,
)
PAIRED = {"bootstrap_host": "p-0.p", "bootstrap_port": 8998, "bootstrap_room": 2**63 - 1}
# What sglang-router 0.3.2 adds to every body.
ROUTER_EXTRAS = {
    "model": None,
    "return_text_in_logprobs": False,
    "log_metrics": True,
    "return_hidden_states": False,
    "background": False,
    "no_logs": False,
    "return_bytes": False,
    "return_entropy": False,
    "stream": False,
}


def test_text_becomes_bytes():
    assert parse_generate({"text": "hé"}, MODEL, disaggregated=False).prompt == [104, 195, 169]


def test_what_the_router_adds_passes():
    body = {"input_ids": [1, 2], **ROUTER_EXTRAS, **PAIRED}
    parsed = parse_generate(body, MODEL, disaggregated=True)
    assert parsed.bootstrap.peer == "p-0.p:8998"
    assert parsed.bootstrap.room == 2**63 - 1


def test_an_ipv6_peer_is_bracketed():
    body = {"input_ids": [1], **PAIRED, "bootstrap_host": "fd00::1"}
    assert parse_generate(body, MODEL, disaggregated=True).bootstrap.peer == "[fd00::1]:8998"


def test_openai_words_mean_the_same():
    body = {"prompt": "a", "max_tokens": 3, "temperature": 0, "seed": 5, "stream": True}
    parsed = parse_completion(body, MODEL, disaggregated=False)
    assert (parsed.prompt, parsed.stream) == ([97], True)
    assert (parsed.sampling.max_new_tokens, parsed.sampling.seed) == (3, 5)


def test_openai_limit_is_16_tokens_when_unsaid():
    parsed = parse_completion({"prompt": [4, 5]}, MODEL, disaggregated=False)
    assert (parsed.prompt, parsed.sampling.max_new_tokens) == ([4, 5], 16)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": "both"}, "text and input_ids"),
        ({"input_ids": None}, "text and input_ids"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [[1], [2]]}, "input_ids[0]"),
        ({"input_ids": [1, 512]}, "input_ids[1]"),
        ({"input_ids": [True]}, "input_ids[0]"),
        ({"input_ids": None, "text": ["a", "b"]}, "text"),
        ({"stream": "yes"}, "stream"),
        ({"sampling_params": [1]}, "sampling_params"),
        ({"sampling_params": {"temperature": -0.1}}, "temperature"),
        ({"sampling_params": {"temperature": float("nan")}}, "temperature"),
        ({"sampling_params": {"top_p": 0}}, "top_p"),
        ({"sampling_params": {"max_new_tokens": 0}}, "max_new_tokens"),
        ({"sampling_params": {"max_new_tokens": 1.5}}, "max_new_tokens"),
        ({"sampling_params": {"stop_token_ids": 3}}, "stop_token_ids"),
        ({"sampling_params": {"stop": ["x"]}}, "sampling_params.stop"),
        ({"sampling_params": {"n": 2}}, "sampling_params.n"),
        ({"sampling_params": {"typo": 1}}, "sampling_params.typo"),
        ({"return_logprob": True}, "return_logprob"),
        ({"bootstrap_host": None}, "bootstrap_host"),
        ({"bootstrap_host": "a\n"}, "bootstrap_host"),
        ({"bootstrap_port": 0}, "bootstrap_port"),
        ({"bootstrap_room": None}, "bootstrap_room"),
        ({"bootstrap_room": 2**63}, "bootstrap_room"),
        ({"bootstrap_room": -1}, "bootstrap_room"),
        ({"bootstrap_room": "7"}, "bootstrap_room"),
    ],
)
def test_a_bad_field_is_named(change, field):
    body = {"input_ids": [1], **PAIRED, **change}
    with pytest.raises(BadRequestError) as refused:
        parse_generate(body, MODEL, disaggregated=True)
    assert refused.value.field == field
    assert field in str(refused.value)


def test_a_body_that_is_no_object_is_refused():
    with pytest.raises(BadRequestError, match="body is"):
        parse_generate([1], MODEL, disaggregated=False)


def test_the_answer_must_fit_behind_the_prompt():
    body = {"input_ids": [1] * 90, "sampling_params": {"max_new_tokens": 11}}
    with pytest.raises(BadRequestError, match="at most 10 fit"):
        check_length(parse_generate(body, MODEL, disaggregated=False), MODEL)


def test_ids_above_a_byte_are_shown_in_text():
    assert ByteTokenizer().decode([104, 300, 105]) == "h<300>i"


def test_a_model_without_tokenizer_asks_for_ids():
    with pytest.raises(BadRequestError, match="send input_ids"):
        NoTokenizer().encode("hi")

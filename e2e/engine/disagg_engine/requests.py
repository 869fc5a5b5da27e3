"""The bodies of SGLang's HTTP dialect, checked field by field.

Fields that would change the answer and are not served are refused, never ignored; fields without
influence on it (routers add many) pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg_engine.errors import BadRequestError
from disagg_engine.models import LoadedModel
from disagg_engine.sampling import Sampling

MAX_ROOM = 2**63 - 1
MAX_PORT = 65535
MAX_HOST_CHARS = 253
MAX_STOP_TOKENS = 64
# Values with which a parameter that is not served here changes nothing.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_new_tokens": (0,),
    "min_tokens": (0,),
    "stop": ([],),
    "stop_regex": ([],),
    "logit_bias": ({},),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (0,),
    "return_logprob": (False,),
    "return_hidden_states": (False,),
    "lora_path": (),
    "image_data": (),
    "input_embeds": (),
}
SERVED = (
    *("max_new_tokens", "temperature", "top_p", "top_k", "ignore_eos", "stop_token_ids"),
    "sampling_seed",
)
NO_INFLUENCE = (
    *("skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"),
    *("stream_interval", "custom_params"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Where decode finds the request's cache. Chosen by whoever sent the request: untrusted."""

    host: str
    port: int
    room: int

    @property
    def peer(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    prompt: list[int]
    sampling: Sampling
    stream: bool
    bootstrap: Bootstrap | None


def parse_generate(body: Any, model: LoadedModel, *, disaggregated: bool) -> Request:
    """POST /generate."""
    fields = _object("body", body)
    _refuse_unserved(fields, prefix="")
    return Request(
        prompt=_prompt(fields, model),
        sampling=_sampling(_object("sampling_params", fields.get("sampling_params") or {})),
        stream=_flag(fields, "stream"),
        bootstrap=_bootstrap(fields) if disaggregated else None,
    )


def parse_completion(body: Any, model: LoadedModel, *, disaggregated: bool) -> Request:
    """POST /v1/completions: the same request in OpenAI's words."""
    fields = _object("body", body)
    _refuse_unserved(fields, prefix="")
    prompt = fields.get("prompt")
    is_text = isinstance(prompt, str)
    words = {**fields, "text": prompt if is_text else None, "input_ids": None}
    if not is_text:
        words["input_ids"] = prompt
    sampling = {name: fields[name] for name in SERVED if fields.get(name) is not None}
    sampling["max_new_tokens"] = _or(fields.get("max_tokens"), 16)
    if fields.get("seed") is not None:
        sampling["sampling_seed"] = fields["seed"]
    return Request(
        prompt=_prompt(words, model, text="prompt", ids="prompt"),
        sampling=_sampling(sampling),
        stream=_flag(fields, "stream"),
        bootstrap=_bootstrap(fields) if disaggregated else None,
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _object(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequestError(field, value, "expected a JSON object")
    return value


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = _or(fields.get(name), False)
    if not isinstance(value, bool):
        raise BadRequestError(name, value, "expected true or false")
    return value


def _integer(field: str, value: Any, *, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequestError(field, value, f"expected an integer from {low} to {high}")
    return value


def _number(field: str, value: Any, *, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequestError(field, value, f"expected a number from {low:g} to {high:g}")
    return float(value)


def _refuse_unserved(fields: Mapping[str, Any], *, prefix: str) -> None:
    for name, neutral in NEUTRAL.items():
        value = fields.get(name)
        if value is not None and value not in neutral:
            allowed = " or ".join(repr(each) for each in neutral) or "nothing"
            raise BadRequestError(f"{prefix}{name}", value, f"this engine serves only {allowed}")


def _prompt(
    fields: Mapping[str, Any], model: LoadedModel, *, text: str = "text", ids: str = "input_ids"
) -> list[int]:
    words, tokens = fields.get("text"), fields.get("input_ids")
    if (words is None) == (tokens is None):
        raise BadRequestError(f"{text} and {ids}", None, "expected exactly one of them")
    if words is not None:
        if not isinstance(words, str):
            raise BadRequestError(text, words, "expected one string; batches are not served")
        tokens = model.tokenizer.encode(words)
    return _token_ids(text if words is not None else ids, tokens, vocab_size=model.vocab_size)


def _token_ids(field: str, tokens: Any, *, vocab_size: int) -> list[int]:
    if not isinstance(tokens, list) or not tokens:
        raise BadRequestError(field, tokens, "expected at least one token")
    top = vocab_size - 1
    return [_integer(f"{field}[{i}]", t, low=0, high=top) for i, t in enumerate(tokens)]


def _sampling(params: Mapping[str, Any]) -> Sampling:
    _refuse_unserved(params, prefix="sampling_params.")
    for name in params:
        if name not in {*SERVED, *NO_INFLUENCE, *NEUTRAL}:
            raise BadRequestError(
                f"sampling_params.{name}", params[name], f"served are {', '.join(SERVED)}"
            )
    given = {name: value for name, value in params.items() if value is not None}
    seed = given.get("sampling_seed")
    return Sampling(
        max_new_tokens=_integer(
            "max_new_tokens", given.get("max_new_tokens", 128), low=1, high=1 << 20
        ),
        temperature=_number("temperature", given.get("temperature", 1.0), low=0, high=100),
        top_p=_number("top_p", given.get("top_p", 1.0), low=1e-6, high=1),
        top_k=_integer("top_k", given.get("top_k", -1), low=-1, high=1 << 30),
        seed=None if seed is None else _integer("sampling_seed", seed, low=0, high=MAX_ROOM),
        stop_tokens=_stop_tokens(given.get("stop_token_ids", [])),
        ignore_eos=_flag(given, "ignore_eos"),
    )


def _stop_tokens(value: Any) -> frozenset[int]:
    if not isinstance(value, list) or len(value) > MAX_STOP_TOKENS:
        raise BadRequestError(
            "stop_token_ids", value, f"expected a list of at most {MAX_STOP_TOKENS} token ids"
        )
    return frozenset(_integer("stop_token_ids[]", each, low=0, high=1 << 30) for each in value)


def _bootstrap(fields: Mapping[str, Any]) -> Bootstrap:
    host = fields.get("bootstrap_host")
    if not isinstance(host, str) or not 0 < len(host) <= MAX_HOST_CHARS or not host.isprintable():
        raise BadRequestError(
            "bootstrap_host",
            host,
            "a prefill or decode server needs the prefill pod's name or address; send requests"
            " through the router",
        )
    return Bootstrap(
        host=host.strip("[]"),
        port=_integer("bootstrap_port", fields.get("bootstrap_port"), low=1, high=MAX_PORT),
        room=_integer("bootstrap_room", fields.get("bootstrap_room"), low=0, high=MAX_ROOM),
    )


def find_bootstrap(body: Any) -> Bootstrap | None:
    """Whose half a refused body is; None where it does not say so in a form that is allowed."""
    try:
        return _bootstrap(_object("body", body))
    except BadRequestError:
        return None


def check_length(request: Request, model: LoadedModel) -> None:
    """The answer has to fit behind the prompt."""
    room = model.context_tokens - len(request.prompt)
    if room < request.sampling.max_new_tokens:
        raise BadRequestError(
            "max_new_tokens",
            request.sampling.max_new_tokens,
            f"{model.name} holds {model.context_tokens} tokens and the prompt has"
            f" {len(request.prompt)}: at most {max(room, 0)} fit",
        )

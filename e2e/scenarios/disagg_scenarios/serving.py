"""Requests through the router, and the same request in one process without any transfer."""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from disagg_scenarios.kube import Kubectl

ROUTER_PORT = 8000
# Longer than the tiny models' sliding window and sparse-attention top-k (16), so that every state
# type decides tokens.
PROMPT = tuple(3 + (7 * i * i + 11 * i) % 500 for i in range(48))
NEW_TOKENS = 24
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the client got: HTTP status, token ids when there are any, the body as it came."""

    status: int
    tokens: tuple[int, ...] = ()
    body: str = ""


def generate(
    kubectl: Kubectl, name: str, *, prompt: Sequence[int] = PROMPT, timeout_s: float = 60.0
) -> Answer:
    """One greedy completion through the Service of a deployment."""
    with kubectl.forward(f"service/{name}", ROUTER_PORT) as port:
        return post_generate(f"http://127.0.0.1:{port}", prompt=prompt, timeout_s=timeout_s)


def post_generate(base_url: str, *, prompt: Sequence[int], timeout_s: float) -> Answer:
    """POST /generate in SGLang's dialect; an HTTP error is an answer, not an exception."""
    body = {
        "input_ids": list(prompt),
        "sampling_params": {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True},
    }
    request = urllib.request.Request(
        f"{base_url}/generate",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return _answer(reply.status, reply.read().decode())
    except urllib.error.HTTPError as refused:
        with refused:
            return _answer(refused.code, refused.read().decode())


def _answer(status: int, text: str) -> Answer:
    try:
        parsed = json.loads(text)
    except ValueError:
        return Answer(status=status, body=text)
    if not isinstance(parsed, dict):
        return Answer(status=status, body=text)
    return Answer(status=status, tokens=tuple(parsed.get("output_ids") or ()), body=text)


def monolith(
    kubectl: Kubectl, pod: str, model: str, *, prompt: Sequence[int] = PROMPT
) -> tuple[int, ...]:
    """The same model, seed and prompt in one process of its own, in the image that serves."""
    printed = kubectl.exec(
        pod,
        "engine",
        *("python3", "-m", "disagg_engine.monolith", "--model", model, "--seed", str(SEED)),
        *("--input-ids", ",".join(map(str, prompt)), "--max-new-tokens", str(NEW_TOKENS)),
        "--json",
    )
    tokens: list[int] = json.loads(printed.strip().splitlines()[-1])["output_ids"]
    return tuple(tokens)

"""From logits to a token."""

import secrets
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    max_new_tokens: int = 128
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = -1  # -1: no limit
    seed: int | None = None  # None: drawn anew for every token
    stop_tokens: frozenset[int] = frozenset()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    id: int
    logprob: float


def pick_token(logits: torch.Tensor, sampling: Sampling, *, position: int) -> Token:
    """`position` is the token's place in the answer: a seeded request continues on another pod."""
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    if sampling.temperature == 0:
        chosen = int(logits.argmax())
    else:
        chosen = _draw(logits.double() / sampling.temperature, sampling, position=position)
    return Token(id=chosen, logprob=float(logprobs[chosen]))


def _draw(logits: torch.Tensor, sampling: Sampling, *, position: int) -> int:
    ranked, ids = torch.softmax(logits, dim=-1).sort(descending=True, stable=True)
    if sampling.top_k > 0:
        ranked[sampling.top_k :] = 0
    # A token stays while the ones before it have not yet filled top_p: the first always stays.
    ranked[ranked.cumsum(0) - ranked >= sampling.top_p] = 0
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed * 1_000_003 + position
    dice = torch.Generator().manual_seed(seed % 2**63)
    return int(ids[torch.multinomial(ranked, 1, generator=dice)])

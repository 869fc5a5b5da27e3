"""The model, one forward pass at a time."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import cache_utils

from disagg_engine.models import LoadedModel
from disagg_engine.sampling import Sampling, Token, pick_token


class ModelRunner:
    """Requests of several threads take turns, a pass each."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._turn = threading.Lock()

    def prefill(self, prompt: Sequence[int]) -> tuple[Any, torch.Tensor]:
        """The cache that the prompt leaves, and the logits after its last token."""
        cache = cache_utils.DynamicCache(config=self.model.module.config)
        return cache, self._forward(prompt, cache)

    def step(self, token: int, cache: Any) -> torch.Tensor:
        return self._forward([token], cache)

    def _forward(self, tokens: Sequence[int], cache: Any) -> torch.Tensor:
        ids = torch.tensor([tokens], dtype=torch.long)
        with self._turn, torch.inference_mode():
            out = self.model.module(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    def is_stop(self, token: int, sampling: Sampling) -> bool:
        if token in sampling.stop_tokens:
            return True
        return not sampling.ignore_eos and token in self.model.stop_tokens

    def continuation(
        self, first: Token, cache: Any, sampling: Sampling, *, check: Callable[[], None]
    ) -> Iterator[Token]:
        """Tokens from the first on, until a stop token or the limit. `check` may raise."""
        token = first
        for position in range(1, sampling.max_new_tokens + 1):
            yield token
            if position == sampling.max_new_tokens or self.is_stop(token.id, sampling):
                return
            check()
            token = pick_token(self.step(token.id, cache), sampling, position=position)

"""The JSON that clients and routers get, in SGLang's and OpenAI's shapes."""

import socket
import time
from typing import Any

from disagg_engine.models import LoadedModel
from disagg_engine.roles import Call
from disagg_engine.runner import ModelRunner
from disagg_engine.sampling import Token
from disagg_engine.settings import Settings
from disagg_transfer.client import TransferFailed

Json = dict[str, Any]
REPLACEMENT = "\ufffd"


class Transcript:
    """What one call has produced so far, and how it ended."""

    def __init__(self, call: Call, runner: ModelRunner, *, limit: int) -> None:
        self._call = call
        self._runner = runner
        self._limit = limit
        self._started = time.monotonic()
        self._created = int(time.time())
        self._told = ""
        self.tokens: list[Token] = []

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def text(self) -> str:
        ids = self.ids
        return self._runner.model.tokenizer.decode(ids[:-1] if self._stopped else ids)

    @property
    def _stopped(self) -> bool:
        last = self.tokens[-1:]
        return bool(last) and self._runner.is_stop(last[0].id, self._call.request.sampling)

    @property
    def finished(self) -> bool:
        return self._stopped or len(self.tokens) >= self._limit

    def generate_answer(self) -> Json:
        """Whole or so far: SGLang streams what has accumulated."""
        return {"text": self.text, "output_ids": self.ids, "meta_info": self._meta()}

    def _meta(self) -> Json:
        return {
            "id": self._call.id,
            "finish_reason": self._finish_reason(),
            "prompt_tokens": len(self._call.request.prompt),
            "completion_tokens": len(self.tokens),
            "cached_tokens": 0,
            "weight_version": "default",
            "e2e_latency": time.monotonic() - self._started,
        }

    def _finish_reason(self) -> Json | None:
        if not self.finished:
            return None
        if self._stopped:
            return {"type": "stop", "matched": self.tokens[-1].id}
        return {"type": "length", "length": len(self.tokens)}

    def completion_answer(self, model: str) -> Json:
        prompt, completion = len(self._call.request.prompt), len(self.tokens)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        return {**self._completion(model, self.text), "usage": usage}

    def completion_chunk(self, model: str) -> Json:
        """The text since the last chunk; a character cut in the middle waits for its rest."""
        text = self.text
        if not self.finished:
            text = text.rstrip(REPLACEMENT)
        news, self._told = text[len(self._told) :], text
        return self._completion(model, news)

    def _completion(self, model: str, text: str) -> Json:
        reason = self._finish_reason()
        choice = {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": reason and reason["type"],
        }
        return {
            "id": self._call.id,
            "object": "text_completion",
            "created": self._created,
            "model": model,
            "choices": [choice],
        }


def error_body(message: str, kind: str, code: int, **more: object) -> Json:
    return {"error": {"message": message, "type": kind, "code": code, **more}}


def transfer_error(failure: TransferFailed, *, role: str, room: int, code: int) -> Json:
    """A router passes nothing but the message on, so it names everything there is to name."""
    pod = socket.gethostname()
    return error_body(
        f"transfer failed: {failure} [{role} pod {pod}, room {room}]",
        str(failure.cause),
        code,
        stage=str(failure.stage),
        state_type=failure.state_type,
        component=failure.component,
        peer_pod=failure.peer_pod,
        pod=pod,
        room=room,
        detail=failure.detail,
    )


def model_info(model: LoadedModel, settings: Settings) -> Json:
    return {
        "model_path": settings.model_id,
        "tokenizer_path": settings.model_id,
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": "default",
        "vocab_size": model.vocab_size,
        "max_context_length": model.context_tokens,
    }


def server_info(settings: Settings) -> Json:
    return {
        "model_path": settings.model_id,
        "served_model_name": settings.model_id,
        "tp_size": 1,
        "dp_size": 1,
        "pp_size": 1,
        "page_size": settings.page_size,
        "max_total_num_tokens": settings.page_size * settings.max_pages,
        "max_running_requests": settings.max_requests,
        "disaggregation_mode": settings.role if settings.disaggregated else "null",
        "disaggregation_bootstrap_port": settings.bootstrap_port,
        "random_seed": settings.seed,
        "version": "disagg-engine",
    }


def models(settings: Settings) -> Json:
    entry = {"id": settings.model_id, "object": "model", "created": 0, "owned_by": "disagg"}
    return {"object": "list", "data": [entry]}

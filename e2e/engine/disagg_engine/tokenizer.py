"""Text to token ids and back."""

from collections.abc import Sequence
from typing import Any, Protocol

from disagg_engine.errors import BadRequestError

BYTE_VALUES = 256


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class ByteTokenizer:
    """One token per UTF-8 byte; ids above 255 are shown as <id>, so that none is lost in text."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        shown = bytearray()
        for token in tokens:
            shown += bytes([token]) if token < BYTE_VALUES else f"<{token}>".encode()
        return shown.decode(errors="replace")


class CheckpointTokenizer:
    """The tokenizer that came with a checkpoint."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._inner.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._inner.decode(list(tokens), skip_special_tokens=True))


class NoTokenizer:
    """A checkpoint without tokenizer files serves token ids only."""

    def encode(self, text: str) -> list[int]:
        raise BadRequestError(
            "text", text, "this model came without tokenizer files: send input_ids instead"
        )

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(f"<{token}>" for token in tokens)

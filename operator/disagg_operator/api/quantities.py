"""Durations and quantities as Kubernetes writes them, and what they mean."""

import re

_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"([0-9]+)([KMGT]i|[kMGT])?")
_FACTORS: dict[str, int] = {
    "": 1,
    **{f"{letter}i": 1024**power for power, letter in enumerate("KMGT", start=1)},
    **{letter: 1000**power for power, letter in enumerate("kMGT", start=1)},
}


def duration_seconds(text: str) -> float:
    """Seconds of a Go duration such as 500ms, 30s or 1m30s."""
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"duration {text!r} is not a number with ms, s, m or h, such as 30s")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def quantity_bytes(value: int | str) -> int:
    """Bytes of a quantity such as 67108864, 64Mi or 4G."""
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(f"quantity {value!r} is not a number with Ki, Mi, Gi, Ti, k, M, G or T")
    return int(match[1]) * _FACTORS[match[2] or ""]


def share_of(value: int | str, whole: int, *, up: bool) -> int:
    """An amount given as a number or as a percentage of `whole`, such as 1 or 25%."""
    text = str(value)
    if not text.endswith("%"):
        return int(text)
    parts = int(text[:-1]) * whole
    return -(-parts // 100) if up else parts // 100

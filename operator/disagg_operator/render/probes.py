"""Probes of the containers. Start-up has a budget of its own, so that readiness can be quick."""

from typing import Any

Object = dict[str, Any]

_PERIOD_S = 2


def http_probe(path: str, port: int, *, budget_s: int, period_s: int = _PERIOD_S) -> Object:
    """Fails when it found no answer for `budget_s`."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period_s,
        "timeoutSeconds": 2,
        "failureThreshold": max(1, budget_s // period_s),
    }

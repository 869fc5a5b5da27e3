"""Resources of the containers: the manifest's, over small defaults, over the profile's devices."""

from collections.abc import Mapping, Sequence
from typing import Any

from disagg_operator.api.pods import Resources

Object = dict[str, Any]

_MI = 1 << 20
# What the agent needs besides its arena: the interpreter, NIXL and its transports.
_AGENT_OVERHEAD = 512 * _MI
_AGENT_REQUEST = 128 * _MI


def engine_resources(
    spec: Resources, *, reference: bool, devices: Mapping[str, int | str], claims: Sequence[str]
) -> Object:
    """Memory of a real engine is the model's matter: only the reference engine has defaults."""
    # The server refuses huge pages to a container that asks for no memory and no processor.
    paged = any(name.startswith("hugepages-") for name in devices)
    requests: Object = {"cpu": "50m"} if reference or paged else {}
    requests |= {"memory": "512Mi"} if reference else {}
    limits: Object = {"memory": "2Gi"} if reference else {}
    return _resources(spec, requests=requests, limits=limits, devices=devices, claims=claims)


def agent_resources(
    spec: Resources, *, arena_bytes: int, devices: Mapping[str, int | str], claims: Sequence[str]
) -> Object:
    """`arena_bytes` of main memory."""
    requests = {"cpu": "20m", "memory": _mebibytes(max(arena_bytes, _AGENT_REQUEST))}
    limits = {"memory": _mebibytes(arena_bytes + _AGENT_OVERHEAD)}
    return _resources(spec, requests=requests, limits=limits, devices=devices, claims=claims)


def _resources(
    spec: Resources,
    *,
    requests: Object,
    limits: Object,
    devices: Mapping[str, int | str],
    claims: Sequence[str],
) -> Object:
    """A default gives way to a request or limit of the manifest: a request above its limit is
    no pod.
    """
    counts = {name: str(count) for name, count in devices.items()}
    found = {
        "requests": {**_without(requests, spec.limits), **counts, **_text(spec.requests)},
        "limits": {**_without(limits, spec.requests), **counts, **_text(spec.limits)},
    }
    shared = {"claims": [{"name": name} for name in claims]} if claims else {}
    return {**{field: values for field, values in found.items() if values}, **shared}


def _without(defaults: Object, named: Mapping[str, int | str]) -> Object:
    return {name: value for name, value in defaults.items() if name not in named}


def _text(values: Mapping[str, int | str]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _mebibytes(count: int) -> str:
    return f"{-(-count // _MI)}Mi"

"""Strategic merge of pods: objects by field, the lists that have a key by that key."""

from typing import Any

Object = dict[str, Any]

# Lists of named things in a pod, and what names them.
_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
}
# Lists that are added to: replacing the profile's tolerations would lose its nodes.
_ADDED = ("tolerations",)


def merged(base: Object, over: Object) -> Object:
    """`base` with `over` on top of it; the order of `base` is kept."""
    result = dict(base)
    for field, value in over.items():
        result[field] = _field(field, base[field], value) if field in base else value
    return result


def _field(field: str, base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return merged(base, over)
    if field in _KEYS:
        return _by_key(_KEYS[field], base, over)
    if field in _ADDED:
        return [*base, *over]
    return over


def _by_key(key: str, base: list[Object], over: list[Object]) -> list[Object]:
    rest = {item[key]: item for item in over}
    changed = [merged(item, rest.pop(item[key], {})) for item in base]
    return [*changed, *rest.values()]

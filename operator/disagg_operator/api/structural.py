"""Pydantic models to structural Kubernetes schemas.

Pydantic's JSON schema is not structural: it refers (`$ref`), unites (`anyOf`) and closes
(`additionalProperties: false`). What has a structural form is rewritten; whatever has none is
refused here, because the API server would refuse it later or, worse, prune fields silently.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

_INT32_MAX = 2**31 - 1
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_RULES = "x-kubernetes-validations"
# In the order in which they are written; any other keyword is refused.
_KEYWORDS = (
    "type",
    "description",
    "format",
    "enum",
    "default",
    "minimum",
    "maximum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "properties",
    "additionalProperties",
    "items",
    "anyOf",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    _INT_OR_STRING,
    _PRESERVE,
    _RULES,
)
# Noise, or strictness that the API server has by other means (pruning, fieldValidation=Strict).
_DROPPED = ("title",)


class NotStructuralError(ValueError):
    """A model says something that a Kubernetes schema cannot."""


def structural(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema(by_alias=True, mode="validation")
    defs = schema.pop("$defs", {})
    return _node(schema, defs, (model.__name__,))


def _node(raw: Mapping[str, Any], defs: Mapping[str, Any], path: tuple[str, ...]) -> Schema:
    node = _flat(raw, defs, path)
    for keyword in _DROPPED:
        node.pop(keyword, None)
    _close(node, path)
    _integer(node)
    _default(node)
    _bounded(node, path)
    if "properties" in node:
        node["properties"] = {
            name: _node(value, defs, (*path, name)) for name, value in node["properties"].items()
        }
    for keyword in ("items", "additionalProperties"):
        if keyword in node:
            node[keyword] = _node(node[keyword], defs, (*path, keyword))
    return _ordered(node, path)


def _flat(raw: Mapping[str, Any], defs: Mapping[str, Any], path: tuple[str, ...]) -> Schema:
    """No `$ref`, no union with null, no `const`."""
    node = dict(raw)
    if "$ref" in node:
        name = node.pop("$ref").removeprefix("#/$defs/")
        if path.count(f"<{name}>"):
            _refuse(path, f"{name} refers to itself, and a structural schema cannot")
        node = {**_flat(defs[name], defs, (*path, f"<{name}>")), **node}
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if "anyOf" in node and not node.get(_INT_OR_STRING):
        kinds = [kind for kind in node.pop("anyOf") if kind != {"type": "null"}]
        if len(kinds) != 1:
            _refuse(path, f"a union of {len(kinds)} types; use one object with optional members")
        node = {**_flat(kinds[0], defs, path), **node}
    return node


def _close(node: Schema, path: tuple[str, ...]) -> None:
    """Open objects say so by the extension, closed ones by saying nothing."""
    extra = node.get("additionalProperties")
    if extra is True and "properties" not in node:
        node[_PRESERVE] = True
    if extra is True and not node.get(_PRESERVE):
        _refuse(path, "allows extra fields; say so with x-kubernetes-preserve-unknown-fields")
    if isinstance(extra, bool):
        del node["additionalProperties"]


def _integer(node: Schema) -> None:
    if node.get("type") == "integer":
        node["format"] = "int32" if node.get("maximum", _INT32_MAX + 1) <= _INT32_MAX else "int64"


def _default(node: Schema) -> None:
    """An object's default is `{}`: its fields' own defaults then fire, at any depth."""
    if node.get("default", ...) is None:
        del node["default"]
    elif isinstance(node.get("default"), dict):
        node["default"] = {}


def _bounded(node: Schema, path: tuple[str, ...]) -> None:
    """CEL's cost estimate, and etcd, want every collection to have an end."""
    if node.get("type") == "array" and "maxItems" not in node:
        _refuse(path, "a list without max_length")
    if "additionalProperties" in node and "maxProperties" not in node:
        _refuse(path, "a map without max_length")


def _ordered(node: Schema, path: tuple[str, ...]) -> Schema:
    unknown = sorted(set(node) - set(_KEYWORDS))
    if unknown:
        _refuse(path, f"keyword {', '.join(unknown)}; allowed: {', '.join(_KEYWORDS)}")
    if _RULES in node:
        node[_RULES] = [dict(sorted(rule.items(), reverse=True)) for rule in node[_RULES]]
    return {keyword: node[keyword] for keyword in _KEYWORDS if keyword in node}


def _refuse(path: tuple[str, ...], problem: str) -> None:
    where = ".".join(part for part in path if not part.startswith("<"))
    raise NotStructuralError(f"{where}: {problem}")

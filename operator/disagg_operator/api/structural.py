"""Pydantic models to structural Kubernetes schemas.

Pydantic's JSON schema is not structural: it refers (`$ref`), unites (`anyOf`) and closes
(`additionalProperties: false`). What has a structural form is rewritten; whatever has none is
refused here, because the API server would refuse it later or, worse, prune fields silently.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from pydantic import BaseModel

from disagg_operator.api.rules import RULES, gather

Schema = dict[str, Any]

_INT32_MAX = 2**31 - 1
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"
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
    RULES,
)
# Noise, or strictness that the API server has by other means (pruning, fieldValidation=Strict).
_DROPPED = ("title",)


class NotStructuralError(ValueError):
    """A model says something that a Kubernetes schema cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where in the schema: the fields for messages, the models to see one inside itself."""

    defs: Mapping[str, Any]
    path: tuple[str, ...]
    models: tuple[str, ...] = ()

    def at(self, name: str) -> "_Place":
        return replace(self, path=(*self.path, name))

    def inside(self, model: str) -> "_Place":
        if model in self.models:
            _refuse(self, f"{model} refers to itself, and a structural schema cannot")
        return replace(self, models=(*self.models, model))


def structural(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema(by_alias=True, mode="validation")
    place = _Place(defs=schema.pop("$defs", {}), path=(model.__name__,))
    return _node(schema, place)


def _node(raw: Mapping[str, Any], place: _Place) -> Schema:
    node, place = _flat(raw, place)
    for keyword in _DROPPED:
        node.pop(keyword, None)
    gather(node)
    _close(node, place)
    _integer(node)
    _default(node)
    _bounded(node, place)
    if "properties" in node:
        fields = node["properties"].items()
        node["properties"] = {name: _node(value, place.at(name)) for name, value in fields}
    for keyword in ("items", "additionalProperties"):
        if keyword in node:
            node[keyword] = _node(node[keyword], place.at(keyword))
    return _ordered(node, place)


def _flat(raw: Mapping[str, Any], place: _Place) -> tuple[Schema, _Place]:
    """No `$ref`, no union with null, no `const`."""
    node, base = dict(raw), Schema()
    if "$ref" in node:
        name = node.pop("$ref").removeprefix("#/$defs/")
        base, place = _flat(place.defs[name], place.inside(name))
    elif "anyOf" in node and not node.get(_INT_OR_STRING):
        kinds = [kind for kind in node.pop("anyOf") if kind != {"type": "null"}]
        if len(kinds) != 1:
            _refuse(place, f"a union of {len(kinds)} types; use one object with optional members")
        base, place = _flat(kinds[0], place)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    return {**base, **node}, place


def _close(node: Schema, place: _Place) -> None:
    """Open objects say so by the extension, closed ones by saying nothing."""
    extra = node.get("additionalProperties")
    if extra is True and "properties" not in node:
        node[_PRESERVE] = True
    if extra is True and not node.get(_PRESERVE):
        _refuse(place, "allows extra fields; say so with x-kubernetes-preserve-unknown-fields")
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


def _bounded(node: Schema, place: _Place) -> None:
    """CEL's cost estimate, and etcd, want every collection to have an end."""
    if node.get("type") == "array" and "maxItems" not in node:
        _refuse(place, "a list without max_length")
    if "additionalProperties" in node and "maxProperties" not in node:
        _refuse(place, "a map without max_length")


def _ordered(node: Schema, place: _Place) -> Schema:
    unknown = sorted(set(node) - set(_KEYWORDS))
    if unknown:
        _refuse(place, f"keyword {', '.join(unknown)}; allowed: {', '.join(_KEYWORDS)}")
    return {keyword: node[keyword] for keyword in _KEYWORDS if keyword in node}


def _refuse(place: _Place, problem: str) -> NoReturn:
    raise NotStructuralError(f"{'.'.join(place.path)}: {problem}")

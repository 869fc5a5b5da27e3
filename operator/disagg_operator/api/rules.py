"""What pydantic has no words for: Kubernetes' schema extensions, as plain dicts for
`json_schema_extra`.

A rule is CEL and is written where the field is. Its message names the field, the value and what is
allowed.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

Extra = dict[str, Any]
Rule = Mapping[str, str]


def quoted(text: str) -> str:
    """`text` as a CEL string literal (JSON's escapes are a subset of CEL's)."""
    return "'" + json.dumps(text, ensure_ascii=False)[1:-1].replace("'", "\\'") + "'"


def cel_list(values: Iterable[str]) -> str:
    return "[" + ", ".join(quoted(value) for value in values) + "]"


def rule(when: str, says: str, *values: str) -> Rule:
    """`when` must hold; else the message `says`, each %s of it filled with a CEL expression.

    By `format`, because the server takes the length of `string(n)` for unbounded and refuses the
    CRD for what such a message might cost.
    """
    if says.count("%s") != len(values):
        raise ValueError(f"message {says!r} has {says.count('%s')} %s for {len(values)} values")
    if not values:
        return {"rule": when, "message": says}
    return {"rule": when, "messageExpression": f"{quoted(says)}.format([{', '.join(values)}])"}


RULES = "x-kubernetes-validations"


def rules(*items: Rule) -> Extra:
    """One key for each rule: pydantic joins a field's extras with those of its type by key, so that
    rules under one key would replace the type's own. Numbered, because pydantic sorts keys.
    """
    return {f"{RULES} {n:02} {item['rule']}": dict(item) for n, item in enumerate(items)}


def gather(schema: Extra) -> None:
    """The rules among a schema's keywords become the one list that Kubernetes knows."""
    keywords = [keyword for keyword in schema if keyword.startswith(f"{RULES} ")]
    if keywords:
        items = [schema.pop(keyword) for keyword in keywords]
        schema[RULES] = [dict(sorted(item.items(), reverse=True)) for item in items]


DURATION = r"^([0-9]+([.][0-9]+)?(ms|s|m|h))+$"


def at_least(field: str, least: str, *, because: str) -> Rule:
    """For a Duration, whose own rule speaks of what is no duration at all."""
    return rule(
        f"!self.matches(r'{DURATION}') || duration(self) >= duration('{least}')",
        f"{field} %s must be at least {least}: {because}",
        "self",
    )


def immutable(field: str) -> Rule:
    return rule(
        "self == oldSelf",
        f"{field} cannot change from %s to %s; delete the DisaggDeployment and create it again",
        "oldSelf",
        "self",
    )


SET: Extra = {"x-kubernetes-list-type": "set"}


def keyed_by(*keys: str) -> Extra:
    """A list that several writers share by key, instead of one list owned as a whole."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}

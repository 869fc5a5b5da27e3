"""The table of fields in docs/resource.md, from the schema."""

from collections.abc import Iterator

from disagg_operator.api.structural import Schema

BEGIN = "<!-- fields: written by `python -m disagg_operator.api.crd` -->\n"
END = "<!-- end of fields -->\n"
_HEAD = "| field | type | default | what it is |\n| --- | --- | --- | --- |\n"


def with_fields(page: str, *, spec: Schema) -> str:
    """The page with its table renewed."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + _tables(spec) + END + after


def _tables(spec: Schema) -> str:
    """A table for each field of the spec that holds others, and one for those that do not."""
    required = spec.get("required", [])
    single = [_row(name, node, required) for name, node in _plain(spec)]
    parts = [_section("spec", single)]
    for name, node in spec["properties"].items():
        if "properties" in node:
            parts.append(_section(f"spec.{name}", list(_rows(node, ""))))
    return "\n".join(parts)


def _section(title: str, rows: list[str]) -> str:
    return f"### `{title}`\n\n{_HEAD}{''.join(rows)}"


def _plain(spec: Schema) -> Iterator[tuple[str, Schema]]:
    return ((name, node) for name, node in spec["properties"].items() if "properties" not in node)


def _rows(parent: Schema, prefix: str) -> Iterator[str]:
    required = parent.get("required", [])
    for name, node in parent["properties"].items():
        path = f"{prefix}{name}"
        if path == "decode":
            yield "| `decode` | object | | Pods that generate tokens; the same fields. |\n"
        elif node.get("properties"):
            yield f"| `{path}` | object | | {_text(node)} |\n"
            yield from _rows(node, f"{path}.")
        else:
            yield _row(path, node, [f"{prefix}{field}" for field in required])


def _row(path: str, node: Schema, required: list[str]) -> str:
    default = "required" if path in required else _default(node)
    return f"| `{path}` | {_type(node)} | {default} | {_text(node)} |\n"


def _default(node: Schema) -> str:
    value = node.get("default")
    if value in (None, [], {}, ""):
        return ""
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(node: Schema) -> str:
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if node.get("type") == "array":
        return f"list of {_type(node['items'])}"
    if "additionalProperties" in node:
        return f"map to {_type(node['additionalProperties'])}"
    if "minimum" in node and "maximum" in node:
        return f"{node['minimum']} to {node['maximum']}"
    return str(node.get("type", "number or string"))


def _text(node: Schema) -> str:
    return str(node["description"]).replace("|", "\\|")

"""The CRD: generated, small, complete, and nothing in it that is not structural."""

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from disagg_operator import names
from disagg_operator.api import crd
from disagg_operator.api.quantities import duration_seconds, quantity_bytes
from disagg_operator.api.resource import InvalidDeploymentError, parse_deployment
from disagg_operator.api.status import Condition, DisaggDeploymentStatus
from disagg_operator.api.structural import NotStructuralError, structural


def schema():
    (version,) = crd.crd()["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def nodes(node, path="$"):
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in node:
            yield from nodes(node[keyword], f"{path}[]")


@pytest.mark.parametrize("path", crd.generated(), ids=lambda path: path.parent.parent.name)
def test_the_checked_in_copies_are_what_the_models_say(path):
    assert path.read_text() == crd.generated()[path], "run make generate"


def test_the_crd_is_smaller_than_64_kib():
    assert len(crd.CRD_FILE.read_bytes()) < 64 * 1024


def test_every_field_that_a_user_sees_is_described():
    for root in ("spec", "status"):
        for path, node in nodes(schema()["properties"][root], root):
            assert path.endswith("[]") or node.get("description"), path


def test_every_collection_has_an_end():
    for path, node in nodes(schema()["properties"]["spec"], "spec"):
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_every_message_names_a_value_or_says_it_all():
    for path, node in nodes(schema(), ""):
        for rule in node.get("x-kubernetes-validations", []):
            assert rule["rule"], path
            assert rule.get("message") or ".format([" in rule["messageExpression"], path


def test_the_columns_answer_what_is_wrong_in_one_line():
    (version,) = crd.crd()["spec"]["versions"]
    columns = version["additionalPrinterColumns"]
    narrow = [column["name"] for column in columns if not column.get("priority")]
    assert narrow == ["Ready", "Prefill", "Decode", "Transfer", "Transport", "Reason", "Age"]
    wide = [column["name"] for column in columns if column.get("priority")]
    assert wide == ["Revision", "Preflight", "URL", "Model", "Message"]


class Inner(BaseModel):
    count: int = Field(3, le=10)


class Outer(BaseModel):
    inner: Inner = Inner()
    maybe: str | None = None
    either: Annotated[int | str, Field(json_schema_extra={"x-kubernetes-int-or-string": True})] = 1
    free: dict[str, Any] | None = None
    big: int = 0


def test_references_unions_with_null_and_titles_become_structural():
    assert structural(Outer) == {
        "type": "object",
        "properties": {
            "inner": {
                "type": "object",
                "default": {},
                "properties": {
                    "count": {"type": "integer", "format": "int32", "default": 3, "maximum": 10}
                },
            },
            "maybe": {"type": "string"},
            "either": {
                "default": 1,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "x-kubernetes-int-or-string": True,
            },
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "big": {"type": "integer", "format": "int64", "default": 0},
        },
    }


class Recursive(BaseModel):
    child: "Recursive | None" = None


class UnboundedList(BaseModel):
    items: tuple[str, ...] = ()


class UnboundedMap(BaseModel):
    labels: dict[str, str] = {}


class Union(BaseModel):
    either: Inner | Outer


class Exclusive(BaseModel):
    above: float = Field(gt=0)


class HiddenExtras(BaseModel, extra="allow"):
    known: str = ""


@pytest.mark.parametrize(
    ("model", "where", "problem"),
    [
        (Recursive, "Recursive.child", "refers to itself"),
        (UnboundedList, "UnboundedList.items", "list without max_length"),
        (UnboundedMap, "UnboundedMap.labels", "map without max_length"),
        (Union, "Union.either", "union of 2 types"),
        (Exclusive, "Exclusive.above", "exclusiveMinimum"),
        (HiddenExtras, "HiddenExtras", "extra fields"),
    ],
)
def test_what_kubernetes_cannot_say_is_refused_by_name(model, where, problem):
    with pytest.raises(NotStructuralError, match=where) as refused:
        structural(model)
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("1m30s", 90), ("1.5s", 1.5), ("24h", 86400)]
)
def test_durations_are_seconds(text, seconds):
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"), [("64Mi", 64 << 20), ("4Gi", 4 << 30), ("3k", 3000), (17, 17)]
)
def test_quantities_are_bytes(text, count):
    assert quantity_bytes(text) == count


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1s2"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="such as 30s"):
        duration_seconds(text)


def test_an_object_of_another_crd_is_refused_naming_the_field():
    metadata = {"name": "a", "namespace": "b", "uid": "c"}
    body = {"metadata": metadata, "spec": {"model": {"source": "m"}, "engine": {"port": "x"}}}
    with pytest.raises(InvalidDeploymentError, match=r"spec\.engine\.port") as refused:
        parse_deployment(body)
    assert "'x'" in str(refused.value)


def test_a_status_is_written_in_camel_case_without_what_it_does_not_know():
    condition = Condition(
        type=names.READY,
        status="False",
        last_transition_time="2026-01-01T00:00:00Z",
        reason="NoData",
        message="m",
    )
    written = DisaggDeploymentStatus(conditions=(condition,)).to_object()
    assert "observedGeneration" not in written
    assert written["conditions"][0]["lastTransitionTime"] == "2026-01-01T00:00:00Z"

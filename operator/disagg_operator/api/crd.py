"""The CustomResourceDefinitions, generated from the models.

`python -m disagg_operator.api.crd` writes the checked-in copies; a test compares them.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from disagg_operator import names
from disagg_operator.api.reference import with_fields
from disagg_operator.api.rules import RULES, rule
from disagg_operator.api.scaler import RoleScalerSpec, RoleScalerStatus
from disagg_operator.api.spec import DisaggDeploymentSpec
from disagg_operator.api.status import DisaggDeploymentStatus
from disagg_operator.api.structural import Schema, structural

NAME = f"{names.PLURAL}.{names.GROUP}"
SCALER_NAME = f"{names.SCALER_PLURAL}.{names.GROUP}"
_ROOT = Path(__file__).parents[3]
_CRDS = _ROOT / "crds"
CRD_FILE = _CRDS / f"{NAME}.yaml"
# The CRDs as a chart of their own; the operator's chart carries a copy of that whole chart, because
# Helm looks for dependencies there and nowhere else.
CRD_CHART = _ROOT / "charts" / "disagg-crds"
VENDORED_CHART = _ROOT / "charts" / "disagg-operator" / "charts" / "disagg-crds"
PAGE = _ROOT / "docs" / "resource.md"
# Characters of a part below which an alias is harder to read than the part itself.
_WORTH_AN_ANCHOR = 60

_NAME_RULE = rule(
    f"self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') &&"
    f" size(self.metadata.name) <= {names.NAME_LIMIT}",
    f"metadata.name %s must be at most {names.NAME_LIMIT} lower-case letters, digits and -, begin with a"
    " letter and not end with -: names of pods are made from it",
    "self.metadata.name",
)


def crds() -> tuple[dict[str, Any], ...]:
    return crd(), scaler_crd()


def crd() -> dict[str, Any]:
    return _definition(
        NAME,
        kind=names.KIND,
        singular=names.SINGULAR,
        short_name=names.SHORT_NAME,
        version=_version(),
    )


def scaler_crd() -> dict[str, Any]:
    return _definition(
        SCALER_NAME,
        kind=names.SCALER_KIND,
        singular=names.SCALER_SINGULAR,
        short_name=names.SCALER_SHORT_NAME,
        version=_scaler_version(),
    )


def _definition(
    name: str, *, kind: str, singular: str, short_name: str, version: dict[str, Any]
) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "labels": {names.LABEL_PART_OF: "disagg"}},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": name.partition(".")[0],
                "singular": singular,
                "shortNames": [short_name],
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def _scaler_version() -> dict[str, Any]:
    return {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _scaler_schema()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            _count_column("Desired", ".spec.replicas", "Wanted groups."),
            _count_column("Current", ".status.replicas", "Groups that are there."),
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
    }


def _scaler_schema() -> Schema:
    return {
        "type": "object",
        "description": "DisaggRoleScaler holds the number of groups of one role of a"
        " DisaggDeployment, for autoscalers and `kubectl scale`. The operator makes it for roles with"
        " scaling.mode External.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(RoleScalerSpec),
            "status": structural(RoleScalerStatus),
        },
    }


def _version() -> dict[str, Any]:
    return {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root_schema()},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            _condition_column("Ready", names.READY),
            _column("Prefill", ".status.prefill", "Ready and desired prefill groups."),
            _column("Decode", ".status.decode", "Ready and desired decode groups."),
            _condition_column("Transfer", names.TRANSFER_HEALTHY),
            _column("Transport", ".status.transport", "What state moves over."),
            _column("Reason", ".status.reason", "Why it is not Ready."),
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            _column("Revision", ".status.currentRevision", "Revision that serves.", wide=True),
            _column("Preflight", ".status.preflight.pairs", "Pairs that passed.", wide=True),
            _column("URL", ".status.url", "Where requests go.", wide=True),
            _column("Model", ".spec.model.source", "The model.", wide=True),
            _column("Message", ".status.message", "Details of the reason.", wide=True),
        ],
    }


def _root_schema() -> Schema:
    return {
        "type": "object",
        "description": "DisaggDeployment serves one model with prefill and decode in separate"
        " pods; transfer agents in the pods move the cache, every state type of it.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(DisaggDeploymentSpec),
            "status": structural(DisaggDeploymentStatus),
        },
        RULES: [dict(_NAME_RULE)],
    }


def _column(name: str, path: str, description: str, *, wide: bool = False) -> dict[str, Any]:
    """Columns of priority 1 are shown by `-o wide` only."""
    column = {"name": name, "type": "string", "jsonPath": path, "description": description}
    return {**column, "priority": 1} if wide else column


def _count_column(name: str, path: str, description: str) -> dict[str, Any]:
    return {**_column(name, path, description), "type": "integer"}


def _condition_column(name: str, condition: str) -> dict[str, Any]:
    path = f'.status.conditions[?(@.type=="{condition}")].status'
    return _column(name, path, f"Status of the condition {condition}.")


class _Dumper(yaml.SafeDumper):
    """Parts that repeat (a role's whole schema stands there twice) become anchors and aliases; levels
    are indented by one space, because two were 25 of 64 KB.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.best_indent = 1  # the option `indent` does not go below 2

    def ignore_aliases(self, data: Any) -> bool:
        return not isinstance(data, dict | list) or len(str(data)) < _WORTH_AN_ANCHOR


def to_yaml(document: dict[str, Any]) -> str:
    dumped: str = yaml.dump(
        _interned(document, {}), Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True
    )
    return f"# Generated by `python -m disagg_operator.api.crd`; do not edit.\n{dumped}"


def _interned(node: Any, known: dict[str, Any]) -> Any:
    """Equal parts become one object, which is what the dumper looks for."""
    if isinstance(node, dict):
        same: Any = {key: _interned(item, known) for key, item in node.items()}
    elif isinstance(node, list):
        same = [_interned(item, known) for item in node]
    else:
        return node
    return known.setdefault(str(same), same)


def chart_yaml(document: dict[str, Any]) -> str:
    """Helm keeps the CRD (and so every resource) when the release goes, and upgrades it in place."""
    document["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    return to_yaml(document).replace("{{", '{{ "{{" }}')


def generated() -> dict[Path, str]:
    """Every file that follows from the models, with its text."""
    chart = {path.name: path.read_text() for path in sorted(CRD_CHART.glob("*.yaml"))}
    files = {f"{document['metadata']['name']}.yaml": document for document in crds()}
    return {
        **{_CRDS / name: to_yaml(document) for name, document in files.items()},
        **{
            folder / "templates" / name: chart_yaml(document)
            for folder in (CRD_CHART, VENDORED_CHART)
            for name, document in files.items()
        },
        **{VENDORED_CHART / name: text for name, text in chart.items()},
        PAGE: with_fields(PAGE.read_text(), spec=structural(DisaggDeploymentSpec)),
    }


def main() -> int:
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        sys.stdout.write(f"wrote {path.relative_to(_ROOT)}, {len(text.encode())} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

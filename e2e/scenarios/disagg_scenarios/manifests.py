"""Lint of everything a user applies: examples against the resource's own models, the charts by Helm.

What Helm renders is parsed by the Kubernetes client's models, which refuse unknown fields.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kubernetes.aio.client.models as kubernetes_models
import yaml

from disagg_operator.api.spec import DisaggDeployment
from disagg_scenarios.stage import EXAMPLES, OPERATOR_CHART, cluster_tool

CHARTS = OPERATOR_CHART.parent
# The shapes a user installs in: the default, one namespace only, and without the CRD.
SETTINGS: tuple[tuple[str, ...], ...] = (
    (),
    ("--set=watch.namespaces={team-a,team-b}",),
    ("--set=crds.install=false",),
)


def main() -> int:
    """Lint all; 0 when nothing was found."""
    helm = cluster_tool("helm")
    found = [*lint_examples(), *lint_charts(helm)]
    for line in found:
        print(line, file=sys.stderr)
    print(f"manifests: {len(found)} findings")
    return 1 if found else 0


def lint_examples() -> Iterator[str]:
    """One line for each example that the resource's models refuse."""
    for path in sorted(EXAMPLES.glob("*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text()):
            try:
                DisaggDeployment.model_validate(manifest)
            except ValueError as refused:
                yield f"{path.name}: {refused}"


def lint_charts(helm: Path) -> Iterator[str]:
    """What `helm lint --strict` and the Kubernetes models say of the charts."""
    for chart in sorted(path.parent for path in CHARTS.glob("*/Chart.yaml")):
        done = _helm(helm, "lint", "--strict", "--quiet", str(chart))
        if done.returncode != 0:
            yield f"{chart.name}: {done.stdout}{done.stderr}"
    for settings in SETTINGS:
        done = _helm(helm, "template", "disagg", str(OPERATOR_CHART), *settings)
        if done.returncode != 0:
            yield f"helm template {' '.join(settings)}: {done.stderr}"
            continue
        yield from lint_objects(yaml.safe_load_all(done.stdout), settings)


def lint_objects(objects: Iterator[Any], settings: Sequence[str]) -> Iterator[str]:
    """One line for each object that has a field its kind does not know."""
    for found in objects:
        if not found or found["kind"] == "CustomResourceDefinition":
            continue  # the API server itself judges the CRD, in the operator's tests
        model = getattr(kubernetes_models, model_name(found["apiVersion"], found["kind"]), None)
        if model is None:
            yield f"{found['kind']}/{found['metadata']['name']}: kind unknown to the client"
            continue
        try:
            model.model_validate(found)
        except ValueError as refused:
            yield f"{' '.join(settings)} {found['kind']}/{found['metadata']['name']}: {refused}"


def model_name(api_version: str, kind: str) -> str:
    """The client's class of a kind: `apps/v1` Deployment -> V1Deployment."""
    return f"{api_version.rpartition('/')[2].capitalize()}{kind}"


def _helm(helm: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(helm), *args], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())

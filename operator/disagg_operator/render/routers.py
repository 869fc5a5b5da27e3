"""The router of a revision, and the Service that clients use."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from disagg_operator import names
from disagg_operator.api.quantities import duration_seconds
from disagg_operator.api.resource import Deployment
from disagg_operator.render.images import Images, router_image
from disagg_operator.render.metadata import labels, metadata, stamped
from disagg_operator.render.probes import http_probe
from disagg_operator.render.profiles import RESTRICTED_CONTAINER, RESTRICTED_POD
from disagg_operator.render.services import selector, service_port
from disagg_operator.render.slots import leaders
from disagg_transfer import contract

Object = dict[str, Any]
GroupsByRole = Mapping[str, Collection[int]]

METRICS_PORT = 29000
# A worker is out after two missed checks and in again after one good one. A request is tried once:
# a second try would pull under a room that may still hold the first one's state.
_FLAGS = (
    ("--prometheus-host", "0.0.0.0"),  # noqa: S104
    ("--prometheus-port", str(METRICS_PORT)),
    ("--policy", "round_robin"),
    ("--disable-retries",),
    ("--disable-circuit-breaker",),
    ("--health-check-interval-secs", "2"),
    ("--health-check-timeout-secs", "2"),
    ("--health-failure-threshold", "2"),
    ("--health-success-threshold", "1"),
    ("--worker-startup-check-interval", "1"),
    # The router starts before its workers and must not give them up while weights load.
    ("--worker-startup-timeout-secs", "86400"),
    ("--request-timeout-secs", "600"),
    ("--log-level", "warn"),
)


def router_deployment(
    deployment: Deployment, *, revision: str, images: Images, groups: GroupsByRole | None = None
) -> Object:
    """Deployment of the router with the workers of this revision, for router.type sglang: those of
    `groups`, or every one that is asked for.

    No pods while the deployment is scaled to zero.
    """
    own = labels(deployment, component=names.ROUTER, revision=revision)
    name = names.router_name(deployment.name, revision=revision)
    selected = selector(deployment, role=names.ROUTER, revision=revision)
    wanted = deployment.spec.router.replicas if deployment.spec.roles.prefill.replicas else 0
    return stamped(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(deployment, name=name, labels=own),
            "spec": {
                "replicas": wanted,
                "revisionHistoryLimit": 1,
                "selector": {"matchLabels": selected},
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
                },
                "template": {
                    "metadata": {"labels": own},
                    "spec": _pod_spec(
                        deployment, images=images, workers=_workers(deployment, revision, groups)
                    ),
                },
            },
        }
    )


def trimmed_router(
    deployment: Deployment, *, revision: str, spec: Mapping[str, Any], leaders: Collection[str]
) -> Object:
    """The router of a revision that can no longer be rendered, with these leaders' pods only."""
    own = labels(deployment, component=names.ROUTER, revision=revision)
    name = names.router_name(deployment.name, revision=revision)
    template = spec["template"]
    containers = [
        {**item, "args": _without_others(item["args"], leaders)}
        if item["name"] == names.CONTAINER_ROUTER
        else item
        for item in template["spec"]["containers"]
    ]
    pods = {**template, "spec": {**template["spec"], "containers": containers}}
    return stamped(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(deployment, name=name, labels=own),
            "spec": {**spec, "template": pods},
        }
    )


def _without_others(args: Sequence[str], leaders: Collection[str]) -> list[str]:
    """Each worker is a flag, its URL and, for prefill, the port of its agent."""
    kept: list[str] = []
    position = 0
    while position < len(args):
        width = {"--prefill": 3, "--decode": 2}.get(args[position], 1)
        part = args[position : position + width]
        host = part[1].partition("://")[2].partition(".")[0] if width > 1 else ""
        if width == 1 or host in leaders:
            kept += part
        position += width
    return kept


def router_service(deployment: Deployment) -> Object:
    """Service `{name}`: to every router that is ready, whatever its revision."""
    own = labels(deployment, component=names.ROUTER)
    return stamped(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(deployment, name=deployment.name, labels=own),
            "spec": {
                "type": "ClusterIP",
                "selector": {
                    names.LABEL_DEPLOYMENT: deployment.name,
                    names.LABEL_ROLE: names.ROUTER,
                },
                "ports": [service_port("http", deployment.spec.router.port)],
            },
        }
    )


def router_url(deployment: Deployment) -> str:
    """Where requests go, inside the cluster; empty without a router of ours."""
    if deployment.spec.router.type != "sglang":
        return ""
    return f"http://{deployment.name}.{deployment.namespace}.svc:{deployment.spec.router.port}"


def _pod_spec(deployment: Deployment, *, images: Images, workers: Sequence[str]) -> Object:
    secrets = [{"name": item.name} for item in deployment.spec.engine.image_pull_secrets]
    return {
        **({"imagePullSecrets": secrets} if secrets else {}),
        # The router needs a moment more than its drain to end by itself.
        "terminationGracePeriodSeconds": _drain_s(deployment) + 10,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": RESTRICTED_POD,
        "containers": [_container(deployment, images=images, workers=workers)],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }


def _container(deployment: Deployment, *, images: Images, workers: Sequence[str]) -> Object:
    port = deployment.spec.router.port
    return {
        "name": names.CONTAINER_ROUTER,
        "image": router_image(deployment, images),
        "imagePullPolicy": deployment.spec.engine.image_pull_policy,
        # The container's last words, for the condition that tells of its crash.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "command": ["python3", "-m", "sglang_router.launch_router"],
        "args": _args(deployment, workers=workers),
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108
        "ports": [
            {"name": "http", "containerPort": port, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "resources": {
            "requests": {"cpu": "20m", "memory": "128Mi"},
            "limits": {"memory": "1Gi"},
        },
        "startupProbe": http_probe("/health", port, budget_s=120, period_s=1),
        # 200 once it has a healthy worker of each role.
        "readinessProbe": http_probe("/readiness", port, budget_s=4),
        "livenessProbe": http_probe("/health", port, budget_s=30, period_s=5),
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }


def _drain_s(deployment: Deployment) -> int:
    return math.ceil(duration_seconds(deployment.spec.rollout.drain))


def _workers(deployment: Deployment, revision: str, groups: GroupsByRole | None) -> list[str]:
    """Exactly the workers of this revision: no request pairs pods of two revisions."""
    flags: list[str] = []
    for role, more in ((names.PREFILL, [str(contract.CONTROL_PORT)]), (names.DECODE, [])):
        asked = range(deployment.spec.role(role).replicas)
        chosen = sorted(groups[role]) if groups is not None else asked
        for slot in leaders(deployment, role=role, revision=revision, groups=chosen):
            url = f"http://{slot.address}:{deployment.spec.engine.port}"
            flags += [f"--{role}", url, *more]
    return flags


def _args(deployment: Deployment, *, workers: Sequence[str]) -> list[str]:
    args = ["--pd-disaggregation", *workers]
    args += ["--shutdown-grace-period-secs", str(_drain_s(deployment))]
    args += ["--host", "0.0.0.0", "--port", str(deployment.spec.router.port)]  # noqa: S104
    return [*args, *(part for flag in _FLAGS for part in flag), *deployment.spec.router.args]

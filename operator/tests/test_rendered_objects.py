"""What the examples become, against checked-in copies, and against Kubernetes' own models.

`DISAGG_WRITE_GOLDEN=1 pytest operator/tests/test_rendered_objects.py` writes the copies anew; read the
difference before you commit it.
"""

import os
from pathlib import Path

import pytest
import yaml
from kubernetes import client
from kubernetes.client import models

from disagg_operator import render
from disagg_operator.api.resource import parse_deployment
from disagg_operator.names import ROLES

GOLDEN = Path(__file__).parent / "golden"
EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
MODELS = {
    "Pod": models.V1Pod,
    "Service": models.V1Service,
    "Secret": models.V1Secret,
    "Deployment": models.V1Deployment,
    "PodDisruptionBudget": models.V1PodDisruptionBudget,
    "NetworkPolicy": models.V1NetworkPolicy,
}


class Plain(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


def example(name):
    body = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    body["metadata"] |= {"namespace": "default", "uid": "6f2c1f34-8f3a-4d0e-9a57-3a54b0f4d9a1"}
    return parse_deployment(body)


def objects(deployment, images):
    revision = render.revision(deployment, images=images)
    yield render.key_secret(deployment, revision=revision, keys=b"k" * 32)
    for role in ROLES:
        yield render.peer_service(deployment, role=role, revision=revision)
    for role in ROLES:
        for rank in range(deployment.spec.role(role).nodes_per_replica):
            yield render.pod(
                deployment, role=role, group=0, rank=rank, revision=revision, images=images
            )
    yield render.router_deployment(deployment, revision=revision, images=images)
    yield render.router_service(deployment)
    for role in ROLES:
        yield render.disruption_budget(deployment, role=role)
    yield render.role_policy(deployment)
    yield render.router_policy(deployment)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_becomes_the_checked_in_objects(name, images):
    rendered = yaml.dump_all(
        objects(example(name), images), Dumper=Plain, sort_keys=False, width=120
    )
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("DISAGG_WRITE_GOLDEN"):
        golden.write_text(rendered)
    assert rendered == golden.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_kubernetes_own_models_know_every_field(name, images):
    for found in objects(example(name), images):
        MODELS[found["kind"]].model_validate(found)


@pytest.mark.api
@pytest.mark.parametrize("name", NAMES)
def test_the_server_takes_every_object(name, images, api, await_service_account):
    core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
    await_service_account(core, "default")
    creates = {
        "Pod": core.create_namespaced_pod,
        "Service": core.create_namespaced_service,
        "Secret": core.create_namespaced_secret,
        "Deployment": apps.create_namespaced_deployment,
        "PodDisruptionBudget": client.PolicyV1Api(api).create_namespaced_pod_disruption_budget,
        "NetworkPolicy": client.NetworkingV1Api(api).create_namespaced_network_policy,
    }
    for found in objects(example(name), images):
        creates[found["kind"]]("default", found, dry_run="All", field_validation="Strict")


@pytest.mark.api
def test_a_namespace_that_enforces_restricted_takes_the_pods_of_the_cpu_profile(
    images, api, await_service_account
):
    core, name = client.CoreV1Api(api), "restricted"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    await_service_account(core, name)
    deployment = example("tiny-qwen3-next")
    pods = [found for found in objects(deployment, images) if found["kind"] == "Pod"]
    router = render.router_deployment(deployment, revision="abcde", images=images)
    template = router["spec"]["template"]
    pods.append({"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "router"}})
    for pod in pods:
        pod["metadata"] = {**pod["metadata"], "namespace": name}
        core.create_namespaced_pod(name, pod, dry_run="All")

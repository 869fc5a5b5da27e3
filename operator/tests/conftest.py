"""Fixtures of the operator's tests: deployments, and a real API server with our CRD."""

import time

import pytest
from kubernetes import client, config, utils

from disagg_operator.api import crd
from disagg_operator.api.resource import parse_deployment
from disagg_operator.render import Images

IMAGES = Images(agent="agent:1", engine="engine:1", router="router:1")
ESTABLISHED_S = 30


@pytest.fixture(scope="session")
def images():
    return IMAGES


@pytest.fixture(scope="session")
def deployment():
    """Make a Deployment from a spec; `model.source` is filled in."""

    def make(name="tiny", *, source="tiny-qwen3-next", model=None, generation=1, **spec):
        metadata = {
            "name": name,
            "namespace": "default",
            "uid": "6f2c1f34-8f3a-4d0e-9a57-3a54b0f4d9a1",
            "generation": generation,
        }
        body = {
            "metadata": metadata,
            "spec": {"model": {"source": source, **(model or {})}, **spec},
        }
        return parse_deployment(body)

    return make


@pytest.fixture(scope="session")
def kubeconfig():
    """Of a real API server, alone on this machine, with the CRD established."""
    cluster = pytest.importorskip("disagg_cluster")
    with cluster.control_plane() as path:
        with config.new_client_from_config(str(path)) as api:
            install_crd(api)
        yield path


@pytest.fixture(scope="session")
def api(kubeconfig):
    with config.new_client_from_config(str(kubeconfig)) as found:
        yield found


def install_crd(api):
    deadline = time.monotonic() + ESTABLISHED_S
    extensions = client.ApiextensionsV1Api(api)
    for document in crd.crds():
        utils.create_from_dict(api, document)
        name = document["metadata"]["name"]
        while not is_established(extensions.read_custom_resource_definition(name)):
            assert time.monotonic() < deadline, f"{name} was not established in time"


def is_established(found):
    conditions = found.status.conditions if found.status else None
    return any(c.type == "Established" and c.status == "True" for c in conditions or ())

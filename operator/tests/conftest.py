"""Fixtures of the operator's tests: deployments, and a real API server with our CRD."""

import pytest
from kubernetes import config

from disagg_fleet import fleet
from disagg_operator.api.resource import parse_deployment
from disagg_operator.render import Images

IMAGES = Images(agent="agent:1", engine="engine:1", router="router:1")


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
    """Of a real API server that serves our kinds; it has no nodes."""
    with fleet(nodes=0) as path:
        yield path


@pytest.fixture(scope="session")
def api(kubeconfig):
    with config.new_client_from_config(str(kubeconfig)) as found:
        yield found

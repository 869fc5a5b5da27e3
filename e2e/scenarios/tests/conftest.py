"""One cluster and one operator for all scenario tests; each test file has a namespace of its own."""

import pytest

from disagg_scenarios.kube import KubectlError
from disagg_scenarios.stage import install_operator, open_stage


@pytest.fixture(scope="session")
def stage():
    found = open_stage()
    install_operator(found)
    return found


@pytest.fixture(scope="module")
def kubectl(stage, request):
    name = "test-" + request.module.__name__.rpartition("test_")[2].replace("_", "-")[:40]
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    stage.namespace("default").apply(manifest)
    yield stage.namespace(name)
    stage.namespace("default").run("delete", "namespace", name, "--timeout=120s", timeout_s=150)


@pytest.fixture
def refused(kubectl):
    """What the API server says to a manifest that it must refuse."""

    def said(manifest):
        with pytest.raises(KubectlError) as failed:
            kubectl.apply(manifest)
        return str(failed.value)

    return said

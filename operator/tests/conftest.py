"""Fixtures of the operator's tests: deployments, and a real API server with our CRD."""

import json
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from kubernetes import client, config
from kubernetes.aio.client.configuration import Configuration
from kubernetes.client.rest import ApiException

from disagg_fleet import fleet
from disagg_operator import names
from disagg_operator.api.resource import parse_deployment
from disagg_operator.gateway import Gateway
from disagg_operator.metrics import Metrics
from disagg_operator.render import Images

ACCOUNT_S = 30
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


@pytest.fixture(scope="session")
def created(api):
    """The object as the server would keep it; nothing is kept."""

    def created(spec, *, name="tiny"):
        model = {"source": "tiny-qwen3-next", **spec.get("model", {})}
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "namespace": "default"},
            "spec": {**spec, "model": model},
        }
        return client.CustomObjectsApi(api).create_namespaced_custom_object(
            names.GROUP,
            names.VERSION,
            "default",
            names.PLURAL,
            body,
            dry_run="All",
            field_validation="Strict",
        )

    return created


@pytest.fixture(scope="session")
def refusal():
    """What the server says no with."""

    def refusal(call):
        with pytest.raises(ApiException) as refused:
            call()
        assert refused.value.status in {400, 422}
        return json.loads(refused.value.body)["message"]

    return refusal


@pytest.fixture(scope="session")
def missing(created, refusal):
    """Those words that the refusal of a spec lacks, and the refusal."""

    def missing(spec, words):
        message = refusal(lambda: created(spec))
        return [word for word in words if word not in message], message

    return missing


@pytest.fixture(scope="session")
def gateway_to():
    """A gateway whose API server answers every request as `server.handle` does."""

    @asynccontextmanager
    async def gateway_to(server, *, metrics=None):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
        try:
            async with Gateway(configuration=configuration, metrics=metrics or Metrics()) as found:
                yield found
        finally:
            await runner.cleanup()

    return gateway_to


@pytest.fixture(scope="session")
def await_service_account():
    def await_service_account(core, namespace):
        """The controller manager makes it soon after the namespace; without it no pod is admitted."""
        deadline = time.monotonic() + ACCOUNT_S
        while not core.list_namespaced_service_account(namespace).items:
            assert time.monotonic() < deadline, f"{namespace} got no service account in time"

    return await_service_account

import asyncio
import json

import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from disagg_operator import gateway as gateway_module
from disagg_operator import names
from disagg_operator.errors import (
    AlreadyExistsError,
    ApiConflictError,
    ApiForbiddenError,
    ApiNotFoundError,
    ApiRejectedError,
    ApiUnavailableError,
)
from disagg_operator.gateway import Gateway
from disagg_operator.kinds import Kind
from disagg_operator.metrics import Metrics, exposition
from disagg_operator.pacing import TokenBucket, backoff_s

POD = {"metadata": {"name": "p", "namespace": "ns"}}


def status(code, reason="", message="said", **headers):
    body = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return lambda: web.json_response(body, status=code, headers=headers)


def fine():
    return web.json_response({"metadata": {"name": "p"}})


class FakeApiServer:
    """Gives the answers it was told, one per request, and keeps the requests."""

    def __init__(self):
        self.answers, self.requests = [], []

    async def handle(self, request):
        body = await request.text()
        self.requests.append((request.method, request.path_qs, request.headers, body))
        return self.answers.pop(0)()


@pytest.fixture
async def server():
    return FakeApiServer()


@pytest.fixture
async def gateway(server, gateway_to, monkeypatch):
    monkeypatch.setattr(gateway_module, "RETRY_BASE_S", 0.001)
    async with gateway_to(server) as found:
        yield found


async def test_apply_is_server_side_and_forced_with_our_manager(gateway, server):
    server.answers = [fine]
    await gateway.apply(Kind.DEPLOYMENT, POD)
    [(method, path, headers, body)] = server.requests
    assert method == "PATCH"
    assert path == (
        "/apis/apps/v1/namespaces/ns/deployments/p?fieldManager=disagg-operator&force=true"
    )
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    assert json.loads(body) == POD


async def test_what_is_created_comes_back_without_being_sent_back(gateway, server):
    server.answers = [lambda: web.json_response({"metadata": {"name": "p", "uid": "u-1"}})]
    made = await gateway.create(Kind.POD, {**POD, "spec": {"nodeName": "n"}})
    assert made == {"metadata": {"name": "p", "uid": "u-1"}, "spec": {"nodeName": "n"}}
    assert "as=PartialObjectMetadata" in server.requests[0][2]["Accept"]


async def test_pods_go_before_what_leads_to_them_and_that_before_what_guards_them(
    server, gateway_to, monkeypatch
):
    """In turn, after one that was first; each has waited by then."""
    monkeypatch.setattr(gateway_module, "CONCURRENCY", 1)
    came, first, others = asyncio.Event(), asyncio.Event(), []

    async def handle(request):
        came.set()
        path = request.path.split("/")
        others.append(path[path.index("ns") + 1])
        await first.wait()
        return fine()

    server.handle = handle
    router = {"metadata": {**POD["metadata"], "labels": {names.LABEL_ROLE: names.ROUTER}}}
    async with gateway_to(server) as gateway:
        asked = [
            asyncio.create_task(call)
            for call in (
                gateway.apply(Kind.SERVICE, POD),
                gateway.apply(Kind.DISRUPTION_BUDGET, POD),
                gateway.apply(Kind.DEPLOYMENT, router),
                gateway.apply(Kind.SERVICE, router),
                gateway.create(Kind.POD, POD),
            )
        ]
        await asyncio.wait_for(came.wait(), 10)
        first.set()
        await asyncio.gather(*asked)
    assert others == ["services", "pods", "deployments", "services", "poddisruptionbudgets"]


async def test_status_goes_to_its_subresource(gateway, server):
    server.answers = [fine]
    await gateway.apply_status(POD)
    assert "/disaggdeployments/p/status?" in server.requests[0][1]


async def test_delete_names_the_very_object(gateway, server):
    server.answers = [fine]
    await gateway.delete(Kind.POD, namespace="ns", name="p", uid="u-1")
    assert json.loads(server.requests[0][3])["preconditions"] == {"uid": "u-1"}


async def test_deleting_what_is_gone_is_fine(gateway, server):
    server.answers = [status(404, "NotFound")]
    await gateway.delete(Kind.POD, namespace="ns", name="p", uid="u-1")


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
async def test_busy_server_is_asked_again(gateway, server, code):
    server.answers = [status(code), status(code), fine]
    await gateway.create(Kind.POD, POD)
    assert len(server.requests) == 3


async def test_server_that_stays_away_is_given_up(gateway, server):
    server.answers = [status(503, message="etcd is slow")] * gateway_module.ATTEMPTS
    with pytest.raises(ApiUnavailableError, match="etcd is slow"):
        await gateway.create(Kind.POD, POD)
    assert not server.answers


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (409, "AlreadyExists", AlreadyExistsError),
        (409, "Conflict", ApiConflictError),
        (403, "Forbidden", ApiForbiddenError),
        (404, "NotFound", ApiNotFoundError),
        (422, "Invalid", ApiRejectedError),
        (400, "BadRequest", ApiRejectedError),
    ],
)
async def test_refusal_is_not_tried_again_and_keeps_the_servers_words(
    gateway, server, code, reason, error
):
    server.answers = [status(code, reason, message="the words")]
    with pytest.raises(error, match="the words") as found:
        await gateway.create(Kind.POD, POD)
    assert (found.value.code, found.value.reason) == (code, reason)
    assert len(server.requests) == 1


async def test_answer_of_a_proxy_is_an_error_too(gateway, server):
    server.answers = [lambda: web.Response(status=418, text="I am a proxy")]
    with pytest.raises(ApiRejectedError, match="I am a proxy"):
        await gateway.create(Kind.POD, POD)


async def test_retry_after_is_obeyed(gateway, server, monkeypatch):
    pauses = []

    async def pause(seconds):
        pauses.append(seconds)

    server.answers = [status(429, **{"Retry-After": "7"}), fine]
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", pause)
        await gateway.create(Kind.POD, POD)
    assert pauses == [7.0]


async def test_requests_are_counted_by_verb_and_code(server, gateway_to, monkeypatch):
    monkeypatch.setattr(gateway_module, "RETRY_BASE_S", 0.001)
    metrics = Metrics()
    server.answers = [status(503), fine]
    async with gateway_to(server, metrics=metrics) as gateway:
        await gateway.create(Kind.POD, POD)
    assert metrics.requests == {("create", "pods", 503): 1, ("create", "pods", 200): 1}
    text = exposition(metrics)
    assert 'disagg_operator_api_requests_total{verb="create",resource="pods",code="503"} 1' in text


async def test_no_server_is_unavailable():
    configuration = Configuration(host="http://127.0.0.1:9")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gateway_module, "RETRY_BASE_S", 0.001)
        async with Gateway(configuration=configuration, metrics=Metrics()) as gateway:
            with pytest.raises(ApiUnavailableError):
                await gateway.create(Kind.POD, POD)


def test_bucket_lets_a_burst_through_and_then_keeps_the_rate():
    now = 100.0
    bucket = TokenBucket(rate=10.0, burst=3.0, clock=lambda: now)
    pauses = [round(bucket._reserve(), 3) for _ in range(5)]
    assert pauses == [0.0, 0.0, 0.0, 0.1, 0.2]


def test_backoff_grows_to_its_limit():
    found = [backoff_s(n, base_s=1.0, limit_s=10.0, jitter=0.0) for n in range(6)]
    assert found == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert backoff_s(1, base_s=1.0, limit_s=10.0, jitter=0.5) == 1.5
    assert backoff_s(10**6, base_s=1.0, limit_s=10.0, jitter=0.0) == 10.0

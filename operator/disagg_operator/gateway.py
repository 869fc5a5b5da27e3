"""The only module that talks to the API server.

Every request passes one gate: at most `CONCURRENCY` at a time and `RATE_PER_S` a second, repeated
with growing pauses while the server is busy or away (its Retry-After is obeyed), counted by verb
and outcome. What cannot be done in the end becomes an error of `errors`.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTResponse

from disagg_operator import names
from disagg_operator.errors import (
    AlreadyExistsError,
    ApiConflictError,
    ApiError,
    ApiForbiddenError,
    ApiGoneError,
    ApiNotFoundError,
    ApiRejectedError,
    ApiUnavailableError,
    LeadershipLostError,
)
from disagg_operator.kinds import Json, Kind
from disagg_operator.metrics import Metrics
from disagg_operator.pacing import TokenBucket, Turns, backoff_s

# More only keeps the server from those that our pods wait for: with 16 on two cores 400 pods were
# Ready in 12.6 to 14.0 s, with 8 in 10.5 to 11.3 (three runs each, in turn).
CONCURRENCY = 8
# A serial client creates about 50 pods a second on one API server; 100 deployments at once need
# a thousand writes, so the bucket only stops a runaway loop.
RATE_PER_S = 200.0
BURST = 400.0
ATTEMPTS = 5
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=15.0)
RETRY_BASE_S = 0.2
RETRY_LIMIT_S = 5.0
# A server may ask for more patience than a pass can have; the loop comes back anyway.
RETRY_AFTER_LIMIT_S = 30.0
_BUSY = frozenset({429, 500, 502, 503, 504})
_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"
_METADATA = f"{_JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_BROKEN = (aiohttp.ClientError, TimeoutError, OSError)
# A page of pods is parsed whole: 100 of them are some 8 MB for a moment.
LIST_LIMIT = 100
# The server ends every watch after this, so that one that is alive is never silent for longer, and
# a dead one is told from a quiet one sooner than by bookmarks (60 s).
WATCH_S = 30
SILENT_S = 40.0
CONNECT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    verb: str
    method: str
    kind: Kind
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Json | None = None
    content_type: str = _JSON
    accept: str = _JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """Code 0 stands for no answer at all."""

    code: int
    text: bytes
    retry_after: str = ""


class Gateway:
    def __init__(
        self, *, configuration: Configuration, metrics: Metrics, attempts: int = ATTEMPTS
    ) -> None:
        self._client = ApiClient(configuration)
        self._client.user_agent = names.FIELD_MANAGER
        self._metrics = metrics
        self._turns = Turns(CONCURRENCY)
        clock = asyncio.get_running_loop().time
        self._bucket = TokenBucket(rate=RATE_PER_S, burst=BURST, clock=clock)
        self._attempts = attempts
        # Asked before every request leaves; false once another process may lead.
        self.permitted: Callable[[], bool] = lambda: True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def read(self, kind: Kind, *, namespace: str, name: str) -> Json:
        path = kind.path(namespace, name)
        return await self._ask(_Request(verb="get", method="GET", kind=kind, path=path))

    async def replace(self, kind: Kind, body: Json) -> Json:
        """The whole object, of the version that `body` carries; ApiConflictError if it changed."""
        path = kind.path(body["metadata"]["namespace"], body["metadata"]["name"])
        return await self._ask(
            _Request(verb="update", method="PUT", kind=kind, path=path, body=body)
        )

    async def apply(self, kind: Kind, body: Json) -> Json:
        """Server-side apply of the whole intent; what we gave up is removed by the server."""
        return await self._ask(_apply(kind, body, subresource=""))

    async def apply_status(self, body: Json, *, kind: Kind = Kind.RESOURCE) -> Json:
        return await self._ask(_apply(kind, body, subresource="/status"))

    async def create(self, kind: Kind, body: Json) -> Json:
        """What was asked for, with the metadata that the server gave it: with hundreds of pods at
        once it has better to do than to send each one back.
        """
        path = kind.path(body["metadata"]["namespace"])
        query = {"fieldManager": names.FIELD_MANAGER}
        request = _Request(
            verb="create",
            method="POST",
            kind=kind,
            path=path,
            query=query,
            body=body,
            accept=_METADATA,
        )
        answer = await self._ask(request)
        return {**body, "metadata": answer["metadata"]}

    async def delete(
        self, kind: Kind, *, namespace: str, name: str, uid: str, force: bool = False
    ) -> None:
        """Delete exactly the object that was observed; one that is gone already is fine.

        `force` takes a pod off the API without waiting for its node.
        """
        options: Json = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
            **({"gracePeriodSeconds": 0} if force else {}),
        }
        path = kind.path(namespace, name)
        request = _Request(verb="delete", method="DELETE", kind=kind, path=path, body=options)
        try:
            await self._ask(request)
        except ApiNotFoundError:
            return

    async def page(self, kind: Kind, *, namespace: str | None, token: str) -> Json:
        """Up to `LIST_LIMIT` of ours, in one namespace or (None) in all; those that come after them
        by the `continue` token in its metadata, "" for the first. ApiGoneError when the token is
        too old: begin anew.
        """
        query = {"limit": str(LIST_LIMIT), **({"continue": token} if token else {})}
        request = _collection("list", kind, namespace, query)
        match page := await self._ask(request):
            case {"items": list(), "metadata": {"resourceVersion": str()}}:
                return page
        raise _nonsense(request, json.dumps(page).encode())

    async def watch(
        self, kind: Kind, *, namespace: str | None, since: str
    ) -> AsyncGenerator[Json, None]:
        """What happens to ours after the version `since`, and bookmarks, until the server ends it.

        ApiGoneError when that version is too old; ApiUnavailableError when the watch breaks, or
        is silent for `SILENT_S`.
        """
        query = {
            "watch": "1",
            "resourceVersion": since,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        request = _collection("watch", kind, namespace, query)
        await self._admit(request)
        try:
            response = await self._open(
                request, aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=SILENT_S)
            )
            with closing(response.response) as streamed:
                self._count(request, streamed.status)
                if streamed.status != HTTPStatus.OK:
                    raise _error(request, await _answer(response))
                async for line in _lines(streamed.content):
                    yield _event(request, line)
        except _BROKEN as error:
            raise _error(request, _no_answer(error)) from error

    async def serves_resource(self) -> bool:
        """Whether both CRDs are installed and established."""
        path = f"/apis/{names.API_VERSION}"
        request = _Request(verb="discover", method="GET", kind=Kind.RESOURCE, path=path)
        try:
            answer = await self._ask(request)
        except ApiNotFoundError:
            return False
        served = {item.get("name") for item in answer.get("resources", ())}
        return {names.PLURAL, names.SCALER_PLURAL} <= served

    async def _ask(self, request: _Request) -> Json:
        for attempt in range(self._attempts):
            try:
                return await self._once(request)
            except ApiUnavailableError as error:
                if attempt == self._attempts - 1:
                    raise
                await asyncio.sleep(_pause_s(error, attempt))
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, request: _Request) -> Json:
        async with self._turns.take(_rank(request)):
            await self._admit(request)
            answer = await self._send(request)
        self._count(request, answer.code)
        if 200 <= answer.code < 300:
            return _parsed(request, answer.text)
        raise _error(request, answer)

    async def _admit(self, request: _Request) -> None:
        await self._bucket.take()
        if not self.permitted():
            raise LeadershipLostError(f"{request.verb} {request.path}: not sent")

    def _count(self, request: _Request, code: int) -> None:
        self._metrics.count_request(request.verb, resource=request.kind.plural, code=code)

    async def _send(self, request: _Request) -> _Answer:
        try:
            return await _answer(await self._open(request, REQUEST_TIMEOUT))
        except _BROKEN as error:
            return _no_answer(error)

    async def _open(self, request: _Request, limits: aiohttp.ClientTimeout) -> RESTResponse:
        """An answer whose body has not been read."""
        query = f"?{urlencode(request.query)}" if request.query else ""
        method, url, headers, body, _ = await self._client.param_serialize(
            request.method,
            request.path + query,
            header_params={"Content-Type": request.content_type, "Accept": request.accept},
            body=request.body,
            auth_settings=["BearerToken"],
        )
        return await self._client.call_api(method, url, headers, body, _request_timeout=limits)


def _collection(verb: str, kind: Kind, namespace: str | None, query: Mapping[str, str]) -> _Request:
    """Of all resources, and of what else bears our label."""
    selector = {} if kind is Kind.RESOURCE else {"labelSelector": names.MANAGED_SELECTOR}
    return _Request(
        verb=verb, method="GET", kind=kind, path=kind.path(namespace), query={**query, **selector}
    )


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines of any length; what comes after the last line break was cut off."""
    held = b""
    async for data in content.iter_any():
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            yield line


def _event(request: _Request, line: bytes) -> Json:
    match event := _parsed(request, line):
        case {"type": "ERROR", "object": {"code": int(code)} as told}:
            raise _failure(request, told, code=code, text=line)
        case {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str()}}}:
            return event
        case {"type": str(), "object": {"metadata": {"resourceVersion": str(), "uid": str()}}}:
            return event
    raise _nonsense(request, line)


async def _answer(response: RESTResponse) -> _Answer:
    return _Answer(
        code=response.status,
        text=await response.read(),
        retry_after=response.headers.get("Retry-After", ""),
    )


def _no_answer(error: Exception) -> _Answer:
    return _Answer(code=0, text=f"{type(error).__name__}: {error}".encode())


def _parsed(request: _Request, text: bytes) -> Json:
    """A proxy in between may say 200 to anything."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise _nonsense(request, text)
    return parsed


def _nonsense(request: _Request, text: bytes) -> ApiError:
    return _error(request, _Answer(code=0, text=b"not as the API says: " + text[:200]))


def _rank(request: _Request) -> int:
    """With a hundred resources at once the server is the bottleneck: what pods wait for, and what
    people do, comes before what leads to pods, and that before what guards them or speaks of them.
    """
    if request.kind in {Kind.DISRUPTION_BUDGET, Kind.NETWORK_POLICY, Kind.EVENT}:
        return 2 if request.body else 0
    labels = (request.body or {}).get("metadata", {}).get("labels", {})
    return int(labels.get(names.LABEL_ROLE) == names.ROUTER or request.kind is Kind.SCALER)


def _apply(kind: Kind, body: Json, *, subresource: str) -> _Request:
    metadata = body["metadata"]
    path = kind.path(metadata["namespace"], metadata["name"]) + subresource
    return _Request(
        verb=f"apply{subresource}",
        method="PATCH",
        kind=kind,
        path=path,
        query={"fieldManager": names.FIELD_MANAGER, "force": "true"},
        body=body,
        content_type=_APPLY,
    )


def _error(request: _Request, answer: _Answer) -> ApiError:
    status, after_s = _status(answer.text), _seconds(answer.retry_after)
    return _failure(request, status, code=answer.code, text=answer.text, retry_after_s=after_s)


def _failure(
    request: _Request, status: Json, *, code: int, text: bytes, retry_after_s: float = 0.0
) -> ApiError:
    """By the server's Status object; its whole `text` is quoted where that has no message."""
    reason = str(status.get("reason", ""))
    said = status.get("message") or text.decode(errors="replace")[:500]
    message = f"{request.verb} {request.path}: {said} (HTTP {code})"
    return _error_class(code, reason)(
        message, code=code, reason=reason, retry_after_s=retry_after_s
    )


def _error_class(code: int, reason: str) -> type[ApiError]:
    if code == 0 or code in _BUSY:
        return ApiUnavailableError
    if code == 409:
        return AlreadyExistsError if reason == "AlreadyExists" else ApiConflictError
    return {
        401: ApiForbiddenError,
        403: ApiForbiddenError,
        404: ApiNotFoundError,
        410: ApiGoneError,
    }.get(code, ApiRejectedError)


def _status(text: bytes) -> Json:
    """The server's Status object; a proxy in between may answer with anything else."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _seconds(text: str) -> float:
    return min(float(text), RETRY_AFTER_LIMIT_S) if text.isdigit() else 0.0


def _pause_s(error: ApiUnavailableError, attempt: int) -> float:
    pause = backoff_s(attempt, base_s=RETRY_BASE_S, limit_s=RETRY_LIMIT_S, jitter=random.random())  # noqa: S311 - spreads retries
    return max(pause, error.retry_after_s)

"""SGLang's HTTP dialect, as sglang-router speaks it to its workers."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from disagg_engine import answers
from disagg_engine.answers import Json, Transcript, error_body, transfer_error
from disagg_engine.engine import Engine
from disagg_engine.errors import BadRequestError, EngineError, NotServingError, OverloadedError
from disagg_engine.requests import Request, find_bootstrap, parse_completion, parse_generate
from disagg_engine.roles import Call
from disagg_engine.settings import Settings, parse_settings
from disagg_transfer.client import TransferFailed

# The status that routers pass on as it is; they turn 504 into 500.
TRANSFER_FAILED_STATUS = 502
MAX_BODY_BYTES = 64 << 20
ENGINE = web.AppKey("engine", Engine)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger(__name__)


def build_app(engine: Engine) -> web.Application:
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_json])
    app[ENGINE] = engine
    get, post = app.router.add_get, app.router.add_post
    for path in ("/health", "/health_generate"):
        get(path, _health)
    for path in ("/model_info", "/get_model_info"):
        get(path, _model_info)
    for path in ("/server_info", "/get_server_info"):
        get(path, _server_info)
    get("/v1/models", _models)
    post("/generate", _generate)
    post("/v1/completions", _completions)
    return app


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (EngineError, TransferFailed) as error:
        status, body = _failure(error, request.app[ENGINE].settings, room=0)
        return web.json_response(body, status=status)


def _failure(error: Exception, settings: Settings, *, room: int) -> tuple[int, Json]:
    match error:
        case TransferFailed():
            status = TRANSFER_FAILED_STATUS
            log.warning("room %d: %s", room, error)
            return status, transfer_error(error, role=settings.role, room=room, code=status)
        case BadRequestError():
            return 400, error_body(str(error), "BadRequest", 400, field=error.field)
        case NotServingError() | OverloadedError():
            kind = type(error).__name__.removesuffix("Error")
            return 503, error_body(str(error), kind, 503)
        case _:
            log.error("room %d: %s", room, error, exc_info=error)
            return 500, error_body(str(error), type(error).__name__, 500)


async def _health(request: web.Request) -> web.Response:
    trouble = request.app[ENGINE].trouble
    if trouble is None:
        return web.Response(text="ok")
    return web.json_response(error_body(trouble, "NotServing", 503), status=503)


async def _model_info(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    if engine.runner is None:
        raise NotServingError(engine.trouble)
    return web.json_response(answers.model_info(engine.runner.model, engine.settings))


async def _server_info(request: web.Request) -> web.Response:
    return web.json_response(answers.server_info(request.app[ENGINE].settings))


async def _models(request: web.Request) -> web.Response:
    return web.json_response(answers.models(request.app[ENGINE].settings))


async def _generate(request: web.Request) -> web.StreamResponse:
    call = await _admit(request, parse_generate)
    shape = Transcript.generate_answer
    return await _answer(request, call, chunk=shape, whole=shape)


async def _completions(request: web.Request) -> web.StreamResponse:
    call = await _admit(request, parse_completion)
    model = request.app[ENGINE].settings.model_id
    return await _answer(
        request,
        call,
        chunk=lambda transcript: transcript.completion_chunk(model),
        whole=lambda transcript: transcript.completion_answer(model),
    )


async def _admit(request: web.Request, parse: Callable[..., Request]) -> Call:
    """Whatever refuses the request here, the peer has a copy and waits for this side."""
    engine = request.app[ENGINE]
    body = await _json(request)
    try:
        model, disaggregated = engine.serving().model, engine.settings.disaggregated
        return engine.admit(parse(body, model, disaggregated=disaggregated))
    except Exception as error:
        engine.refuse(find_bootstrap(body), error)
        raise


async def _json(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise BadRequestError("body", str(error), "expected a JSON object") from error


async def _answer(
    request: web.Request,
    call: Call,
    *,
    chunk: Callable[[Transcript], Json],
    whole: Callable[[Transcript], Json],
) -> web.StreamResponse:
    engine = request.app[ENGINE]
    transcript = Transcript(call, engine.serving(), limit=engine.limit(call))
    if call.request.stream:
        return await _stream(request, engine, call, transcript, chunk=chunk)
    try:
        async with aclosing(engine.tokens(call)) as tokens:
            async for token in tokens:
                transcript.tokens.append(token)
    except (EngineError, TransferFailed) as error:
        status, body = _failure(error, engine.settings, room=_room(call))
        return web.json_response(body, status=status)
    return web.json_response(whole(transcript))


def _room(call: Call) -> int:
    return call.request.bootstrap.room if call.request.bootstrap else 0


async def _stream(
    request: web.Request,
    engine: Engine,
    call: Call,
    transcript: Transcript,
    *,
    chunk: Callable[[Transcript], Json],
) -> web.StreamResponse:
    """Headers go out with the first token: until then a failure still has a status of its own."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    try:
        async with aclosing(engine.tokens(call)) as tokens:
            async for token in tokens:
                if not response.prepared:
                    await response.prepare(request)
                transcript.tokens.append(token)
                await _send(response, chunk(transcript))
    except (EngineError, TransferFailed) as error:
        status, body = _failure(error, engine.settings, room=_room(call))
        if not response.prepared:
            return web.json_response(body, status=status)
        await _send(response, body)
    await response.write(b"data: [DONE]\n\n")
    return response


async def _send(response: web.StreamResponse, event: Json) -> None:
    await response.write(f"data: {json.dumps(event)}\n\n".encode())


async def serve(settings: Settings) -> int:
    """Answer health at once, load the model beside it, end on SIGTERM or when loading fails."""
    engine = Engine(settings)
    # No access log: probes and routers ask for health every second or two.
    runner = web.AppRunner(
        build_app(engine), handler_cancellation=True, shutdown_timeout=5, access_log=None
    )
    await runner.setup()
    await web.TCPSite(runner, settings.host, settings.port).start()
    log.info("%s engine of %s on %s", settings.role, settings.model, runner.addresses)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    loading = asyncio.create_task(asyncio.to_thread(engine.load))
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({loading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            log.info("loaded %s", settings.model)
            await waiting
    finally:
        engine.close()
        await runner.cleanup()
    return 0


def _is_no_http(record: logging.LogRecord) -> bool:
    """A router tries HTTP/2 first; aiohttp logs each try as an error, with the bytes."""
    return bool(record.exc_info and isinstance(record.exc_info[1], BadHttpMessage))


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("aiohttp.server").addFilter(lambda record: not _is_no_http(record))
    # An arbitrary uid has no home and no name; torch and the hub client look for both.
    os.environ.setdefault("USER", "disagg")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return asyncio.run(serve(parse_settings(argv)))
    except EngineError as error:
        log.error("%s", error)  # noqa: TRY400  (the message says it all)
        return 1


if __name__ == "__main__":
    sys.exit(main())

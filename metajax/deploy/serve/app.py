"""The service as an ASGI application, and the server that runs it."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from metajax.data import strict_json
from metajax.deploy.classifier import Classifier
from metajax.deploy.serve.batches import Batcher, Question
from metajax.deploy.serve.sessions import Limits, Refusal, Sessions
from metajax.errors import DataError
from metajax.names import shown

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that no other machine reaches."""

App = Callable[
    [Any, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]


def make_app(
    model: Classifier, *, limits: Limits | None = None, hosts: tuple[str, ...] = ()
) -> App:
    """Makes the service of a trained learner, an ASGI application that needs no framework.

    POST /sessions starts a session, DELETE /sessions/NAME ends it. POST /sessions/NAME/learn, /predict and
    /forget take and return JSON; image files are in base64. GET / describes the model and the limits. A
    refused request gets a status of 400 to 499 and one line as {"error": ...}.

    Args:
      model: Trained learner; sessions start with the classes that it has learned.
      limits: Limits; None is `Limits()`.
      hosts: Names of this host that requests may be addressed to; () allows all. On loopback they keep out
        pages of other sites whose name leads here.

    Returns:
      The application.

    Example:
      >>> import metajax.deploy as deploy
      >>> spec = deploy.LearnerSpec("protonet", "mlp", ways=2, examples=4)
      >>> meta = deploy.make_learner_of(spec).init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
      >>> bundle = deploy.Bundle(spec, deploy.ImageForm((8, 8, 1), (0.5,), (0.5,)), meta)
      >>> app = make_app(deploy.Classifier(bundle))
    """
    service = _Service(model, Limits() if limits is None else limits)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"{scope['type']} is not served; use HTTP")
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            host = _host_of(headers.get(b"host", b"").decode("latin-1"))
            if hosts and host not in hosts:
                raise Refusal(421, f"this host is not {shown(host)}")
            status, answer = await service.answer(scope["method"], scope["path"], headers, receive)
        except Refusal as error:
            status, answer = error.status, {"error": str(error)}
        except DataError as error:
            status, answer = 422, {"error": str(error)}
        except Exception:  # the reason is for the log, and not for whoever asks
            logging.getLogger("metajax.serve").exception("a request failed")
            status, answer = (
                500,
                {"error": "the request failed here; the log of the service has the reason"},
            )
        content = json.dumps(answer).encode()
        kind = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": status, "headers": kind})
        await send({"type": "http.response.body", "body": content})

    return app


def _host_of(header: str) -> str:
    """Takes the name out of a Host header, such as `localhost:8000` or `[::1]:8000`."""
    return header[1:].partition("]")[0] if header[:1] == "[" else header.partition(":")[0]


class _Service:
    """The requests that there are, and the one thread that computes and changes sessions."""

    def __init__(self, model: Classifier, limits: Limits):
        self._model, self._limits = model, limits
        self._sessions = Sessions(model, limits)
        self._thread = ThreadPoolExecutor(1, "metajax")
        self._batcher = Batcher(self._thread, limits.together)

    async def answer(
        self,
        method: str,
        path: str,
        headers: dict[bytes, bytes],
        receive: Callable[[], Awaitable[Any]],
    ) -> tuple[int, Any]:
        """Answers a request with a status and a value for JSON."""
        match method, path.strip("/").split("/"):
            case "GET", [""]:
                return 200, self._description()
            case "POST", ["sessions"]:
                return 201, {"session": await self._in_turn(self._sessions.start)}
            case "DELETE", ["sessions", name]:
                await self._in_turn(self._sessions.end, name)
                return 200, {}
            case "POST", ["sessions", name, "learn" | "forget" as verb]:
                asked = await self._read(headers, receive)
                return 200, await self._in_turn(getattr(self._sessions, verb), name, asked)
            case "POST", ["sessions", name, "predict"]:
                asked = await self._read(headers, receive)
                classifier, pixels = await self._in_turn(self._sessions.question, name, asked)
                rows = await self._batcher.ask(Question(classifier, pixels))
                return 200, {"answers": [_named(classifier, row.tolist()) for row in rows]}
            case _, [""] | ["sessions"] | ["sessions", _] | [
                "sessions",
                _,
                "learn" | "forget" | "predict",
            ]:
                raise Refusal(405, f"{shown(method)} is not for {shown(path)}; GET / tells what is")
        raise Refusal(404, f"there is nothing at {shown(path)}; GET / tells what is")

    async def _in_turn(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _read(
        self, headers: dict[bytes, bytes], receive: Callable[[], Awaitable[Any]]
    ) -> Any:
        """Reads JSON of limited length."""
        # Pages of other sites cannot send this type without asking first, which is answered by 405.
        if headers.get(b"content-type", b"").partition(b";")[0].strip() != b"application/json":
            raise Refusal(
                415, "the request is not of type application/json; say so in its Content-Type"
            )
        content, most, more = bytearray(), self._limits.request_bytes, True
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > most:
            raise Refusal(
                413, f"the request has more than {most:,} bytes; give fewer or smaller pictures"
            )
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the request ended early")
            content += message.get("body", b"")
            more = message.get("more_body", False)
            if len(content) > most:
                raise Refusal(
                    413, f"the request has more than {most:,} bytes; give fewer or smaller pictures"
                )
        try:
            return strict_json.loads(bytes(content))
        except ValueError as error:
            raise Refusal(400, f"the request is not JSON: {shown(error)}") from None

    def _description(self) -> dict[str, Any]:
        bundle = self._model.bundle
        return {
            "learner": bundle.spec.learner,
            "shape": list(bundle.images.shape),
            "classes": list(self._model.labels),
            "most_classes": min(self._model.most_ways, self._limits.classes),
            "limits": self._limits._asdict(),
            "requests": [
                "POST /sessions",
                "POST /sessions/NAME/learn {'examples': {CLASS: [BASE64, ...]}}",
                "POST /sessions/NAME/predict {'pictures': [BASE64, ...]}",
                "POST /sessions/NAME/forget {'label': CLASS}",
                "DELETE /sessions/NAME",
            ],
        }


def _named(classifier: Classifier, row: list[float]) -> dict[str, Any]:
    """Names the classes of an answer."""
    probability, threshold = max(row), classifier.bundle.threshold
    return {
        "label": classifier.labels[row.index(probability)],
        "probability": probability,
        "known": threshold is None or probability >= threshold,
        "probabilities": dict(zip(classifier.labels, row, strict=True)),
    }


def serve(
    model: Classifier, *, host: str = LOOPBACK[0], port: int = 8000, limits: Limits | None = None
) -> None:
    """Serves a trained learner over HTTP until it is interrupted.

    Args:
      model: Trained learner.
      host: Address to listen at; by default no other machine reaches it.
      port: Port, from 0 to 65535; 0 takes a free one.
      limits: Limits; None is `Limits()`.

    Raises:
      DataError: If a limit or the port makes no sense.
      ImportError: If uvicorn is not installed.

    Example:
      >>> serve(metajax.load("pets"), port=8000)  # doctest: +SKIP
    """
    limits = Limits() if limits is None else limits
    for name, value in {**limits._asdict(), "port": port or 1}.items():
        if value <= 0:
            raise DataError(f"{name} is {value}; use a number above 0")
    if port > 65535:
        raise DataError(f"port is {port}; use one up to 65535")
    try:
        import uvicorn  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("a service needs uvicorn: pip install 'metajax[serve]'") from error
    hosts = LOOPBACK if host in LOOPBACK else ()
    app = make_app(model, limits=limits, hosts=hosts)
    uvicorn.run(
        app,
        host=host,
        port=port,
        lifespan="off",
        ws="none",
        log_level="warning",
        timeout_keep_alive=60,  # seconds; a client may wait for its first compilation
        limit_concurrency=1000,  # connections, of which each may hold a request in memory
    )

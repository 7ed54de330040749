"""The service: sessions apart, answers as the classifier's, and one line for hostile requests."""

import asyncio
import base64
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from metajax import deploy
from metajax.deploy.serve import Limits, Refusal, Sessions, make_app

SHAPE = (8, 8, 1)
LIMITS = Limits(sessions=3, classes=3, examples=8, queries=4, request_bytes=20_000, pixels=10_000)


@pytest.fixture(scope="module")
def model():
    options = {"filters": 8, "norm": "group"}
    spec = deploy.LearnerSpec("protonet", "conv4_stride", 3, 6, network_options=options)
    meta = jax.jit(deploy.make_learner_of(spec).init)(jax.random.key(0), jnp.zeros((2, *SHAPE)))
    return deploy.Classifier(deploy.Bundle(spec, deploy.ImageForm(SHAPE, (0.5,), (0.25,)), meta))


def picture(shade, side=8):
    file = io.BytesIO()
    Image.fromarray(np.full((side, side), shade, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def request(app, method, path, content=b"", *, kind="application/json", host="localhost:1"):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = [(b"host", host.encode()), (b"content-type", kind.encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    halves = [
        {"type": "http.request", "body": body[: len(body) // 2], "more_body": True},
        {"type": "http.request", "body": body[len(body) // 2 :]},
    ]
    sent = []

    async def receive():
        return halves.pop(0)

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def run(app, *requests):
    """Sends requests one after another."""

    async def every():
        return [await request(app, *one) for one in requests]

    return asyncio.run(every())


def test_sessions_have_classes_of_their_own_and_are_answered_together(model):
    app = make_app(model, limits=LIMITS)
    taught = [
        {"dark": [20], "light": [230, 220]},
        {"night": [10, 30, 20], "day": [200], "dusk": [128]},
    ]
    queries = [[25, 225, 120], [130]]

    async def scenario():
        names = [(await request(app, "POST", "/sessions"))[1]["session"] for _ in taught]
        for name, classes in zip(names, taught, strict=True):
            examples = {label: list(map(picture, shades)) for label, shades in classes.items()}
            status, said = await request(
                app, "POST", f"/sessions/{name}/learn", {"examples": examples}
            )
            assert status == 200 and said["classes"] == {k: len(v) for k, v in classes.items()}
        return names, await asyncio.gather(
            *(
                request(
                    app, "POST", f"/sessions/{n}/predict", {"pictures": list(map(picture, shades))}
                )
                for n, shades in zip(names, queries, strict=True)
            )
        )

    names, answers = asyncio.run(scenario())
    for classes, shades, (status, said) in zip(taught, queries, answers, strict=True):
        alone = model.learn(
            {label: [base64.b64decode(picture(s)) for s in s_] for label, s_ in classes.items()}
        )
        expected = alone.predict([base64.b64decode(picture(s)) for s in shades])
        assert status == 200
        assert [a["label"] for a in said["answers"]] == [e.label for e in expected]
        for found, wanted in zip(said["answers"], expected, strict=True):
            assert found["probabilities"] == pytest.approx(dict(wanted.probabilities), abs=2e-6)
    (status, said), _, (gone, _) = run(
        app,
        ("POST", f"/sessions/{names[1]}/forget", {"label": "dusk"}),
        ("DELETE", f"/sessions/{names[1]}"),
        ("POST", f"/sessions/{names[1]}/forget", {"label": "day"}),
    )
    assert (status, said, gone) == (200, {"classes": {"night": 3, "day": 1}}, 404)


def test_an_idle_session_makes_room_and_a_busy_one_does_not(model):
    now = [0.0]
    sessions = Sessions(model, Limits(sessions=2, idle_seconds=10), clock=lambda: now[0])
    first, second = sessions.start(), sessions.start()
    with pytest.raises(Refusal, match="2 sessions are open, which is the limit"):
        sessions.start()
    now[0] = 11
    with pytest.raises(Refusal, match="two or more"):
        sessions.question(first, {"pictures": [picture(1)]})
    assert sessions.start() not in (first, second)
    with pytest.raises(Refusal, match="no such session"):
        sessions.end(second)
    sessions.end(first)


HOSTILE = {
    "not JSON": ("learn", b"{", 400, "is not JSON"),
    "too deep": ("learn", b"[" * 9000, 400, "is not JSON"),
    "twice": ("learn", b'{"examples": {}, "examples": {}}', 400, "twice"),
    "a list": ("learn", [1], 422, "an object named 'examples'"),
    "strange field": ("learn", {"examples": {}, "x": 1}, 422, "alone"),
    "no pictures": ("learn", {"examples": {"a": []}}, 422, "no list of pictures"),
    "a number": ("learn", {"examples": {"a": [1]}}, 422, "picture 0 is no text"),
    "no base64": ("learn", {"examples": {"a": ["%%%"]}}, 422, "not in base64"),
    "no picture": ("learn", {"examples": {"a": ["aGVsbG8="]}}, 422, "not a readable image"),
    "a bomb": ("learn", {"examples": {"a": [picture(0, 101)]}}, 413, "10201 pixels of picture 0"),
    "no name": ("learn", {"examples": {"": [picture(0)]}}, 422, "no usable name"),
    "line": ("learn", {"examples": {"a\nb": [picture(0)]}}, 422, "no usable name"),
    "many classes": ("learn", {"examples": {c: [picture(0)] for c in "abcd"}}, 413, "4 classes"),
    "many": ("learn", {"examples": {"a": [picture(0)] * 9}}, 413, "9 examples of a session"),
    "large": ("learn", b" " * 20_001, 413, "more than 20,000 bytes"),
    "unknown": ("forget", {"label": "a"}, 422, "no class a to forget"),
    "nothing": ("predict", {"pictures": []}, 422, "no picture"),
    "too soon": ("predict", {"pictures": [picture(0)]}, 409, "0 classes are learned"),
    "much": ("predict", {"pictures": [picture(0)] * 5}, 413, "5 pictures of a request"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_requests_get_one_line(model, case):
    verb, content, expected, words = HOSTILE[case]
    app = make_app(model, limits=LIMITS)
    name = run(app, ("POST", "/sessions"))[0][1]["session"]
    ((status, said),) = run(app, ("POST", f"/sessions/{name}/{verb}", content))
    assert status == expected and words in said["error"] and "\n" not in said["error"]
    # What was refused has changed nothing.
    assert run(app, ("GET", "/"))[0][0] == 200


def test_requests_to_nowhere_and_from_other_sites_are_refused(model):
    app = make_app(model, limits=LIMITS, hosts=("localhost", "::1"))

    async def every():
        return [
            await request(app, "GET", "/etc/passwd"),
            await request(app, "PUT", "/sessions"),
            await request(app, "POST", "/sessions/x/learn", {}, kind="text/plain"),
            await request(app, "POST", "/sessions/x/learn", {}),
            await request(app, "GET", "/", host="evil.example:80"),
            await request(app, "GET", "/", host="[::1]:80"),
        ]

    found = asyncio.run(every())
    assert [status for status, _ in found] == [404, 405, 415, 404, 421, 200]


def test_the_server_answers_over_a_socket(model):
    uvicorn = pytest.importorskip("uvicorn")
    config = uvicorn.Config(make_app(model), port=0, lifespan="off", log_level="warning", ws="none")
    server = uvicorn.Server(config)

    async def scenario():
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        server.should_exit = True
        await running
        return answer

    answer = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 200") and b'"protonet"' in answer

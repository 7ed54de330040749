"""Measures requests per second and latencies of the service on loopback, in batches and one by one.

    python -m benchmarks.serving [--clients=1,8,64] [--seconds=5]

A service of an untrained prototypical network (conv4, 64 filters, 28x28) runs in a process of its own. Each
client has a session of five classes with one example each, and asks about one picture after another over one
connection. The command prints, for each number of clients, requests per second and the median and the 99th
percentile of their latency: of a service that answers waiting sessions together, and of one that answers one
request at a time. Programs are compiled before the time starts.
"""

import argparse
import asyncio
import base64
import io
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from metajax import deploy

WARM_SECONDS = 8.0
SHAPE = (28, 28, 1)


def write_model(folder: Path) -> Path:
    """Writes a bundle with fresh meta-parameters.

    Args:
      folder: Folder to write.

    Returns:
      The folder.
    """
    options = {"filters": 64, "norm": "group"}
    spec = deploy.LearnerSpec("protonet", "conv4", 5, 25, network_options=options)
    meta = jax.jit(deploy.make_learner_of(spec).init)(jax.random.key(0), jnp.zeros((2, *SHAPE)))
    return deploy.Bundle(spec, deploy.ImageForm(SHAPE, (0.5,), (0.25,)), meta).save(folder)


class Client:
    """A connection that stays open, and a session."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    async def post(self, path: str, body: object = None) -> dict:
        """Sends a request, and reads the answer."""
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        self._writer.write(head.encode() + content)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        said = json.loads(await self._reader.readexactly(length))
        if not answer.startswith(b"HTTP/1.1 20"):
            raise RuntimeError(f"the service has refused a request: {said}")
        return said


def picture(random: np.random.Generator) -> str:
    """Draws a picture of noise as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, SHAPE[:2]).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def ask(port: int, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Lets clients ask for some time.

    Args:
      port: Port of the service.
      clients: Number of clients.
      seconds: Time to measure.

    Returns:
      Requests per second, and latencies in milliseconds.
    """
    random = np.random.default_rng(0)
    opened = []
    for _ in range(clients):
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        name = (await client.post("/sessions"))["session"]
        examples = {f"class {i}": [picture(random)] for i in range(5)}
        await client.post(f"/sessions/{name}/learn", {"examples": examples})
        opened.append((client, f"/sessions/{name}/predict", {"pictures": [picture(random)]}))
    for size in (
        1,
        2,
        3,
        5,
        9,
        17,
    ) * 2:  # programs of all sizes are compiled before the time starts
        await asyncio.gather(*(client.post(*rest) for client, *rest in opened[:size]))
    start = time.perf_counter() + WARM_SECONDS
    latencies: list[float] = []

    async def go(client: Client, path: str, body: dict) -> None:
        while (begin := time.perf_counter()) < start + seconds:
            await client.post(path, body)
            if begin >= start:
                latencies.append(1e3 * (time.perf_counter() - begin))

    await asyncio.gather(*(go(*one) for one in opened))
    return len(latencies) / (time.perf_counter() - start), latencies


def measure(model: Path, together: int, clients: Sequence[int], seconds: float) -> list[str]:
    """Starts a service, and measures it.

    Args:
      model: Bundle.
      together: Most requests that are answered at once.
      clients: Numbers of clients.
      seconds: Time per number.

    Returns:
      One line per number of clients.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "metajax", "serve", str(model), f"--port={port}"]
    limits = ["--most_sessions=1000", f"--most_together={together}"]
    service = subprocess.Popen([*command, *limits], stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        lines = []
        for count in clients:
            rate, latencies = asyncio.run(ask(port, count, seconds))
            median, last = np.percentile(latencies, [50, 99])
            lines.append(f"{together:8d} {count:8d} {rate:12.1f} {median:11.1f} {last:9.1f}")
            print(lines[-1], flush=True)
        return lines
    finally:
        service.terminate()
        service.wait(30)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark.

    Args:
      argv: Arguments; None is the command line.
    """
    parser = argparse.ArgumentParser(description="Measures the service.")
    parser.add_argument("--clients", default="1,8,64", help="numbers of clients")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per number of clients")
    arguments = parser.parse_args(argv)
    clients = [int(number) for number in arguments.clients.split(",")]
    print(f"{'together':>8} {'clients':>8} {'requests/s':>12} {'median ms':>11} {'99% ms':>9}")
    with tempfile.TemporaryDirectory() as root:
        model = write_model(Path(root) / "model")
        for together in (16, 1):
            measure(model, together, clients, arguments.seconds)


if __name__ == "__main__":
    main()

"""A headless Chromium that reaches this machine alone, driven over its own protocol."""

import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Browser:
    """A tab."""

    def __init__(self, socket: Any):
        self._socket, self._number = socket, 0

    def send(self, method: str, **parameters: Any) -> Any:
        """Calls a method of the protocol."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(timeout=120))
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    def run(self, code: str) -> Any:
        """Evaluates JavaScript, and waits for a promise."""
        found = self.send(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, code: str, seconds: float = 60) -> Any:
        """Evaluates JavaScript until it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(code):
                return found
            time.sleep(0.05)
        raise AssertionError(
            f"{code} is not true after {seconds} s: {self.run('document.body.innerText')}"
        )

    def draw(self, element: str, points: list[tuple[float, float]]) -> None:
        """Draws a line on an element by the mouse; points are shares of its width and height."""
        box = self.run(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height] })()"
        )
        for number, (x, y) in enumerate(points):
            kind = "mouseMoved" if number else "mousePressed"
            self._mouse(kind, box[0] + x * box[2], box[1] + y * box[3])
        self._mouse("mouseReleased", box[0] + x * box[2], box[1] + y * box[3])

    def _mouse(self, kind: str, x: float, y: float) -> None:
        self.send(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1
        )


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves a folder on loopback, and lists the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            asked.append(str(arguments[0]))

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def browsing(address: str, profile: Path) -> Iterator[Browser]:
    """Opens an address in a browser without network; skips the test where there is no browser."""
    client = pytest.importorskip("websockets.sync.client")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    with (profile.parent / "chromium.log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--enable-logging=stderr",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(profile.parent)},
        )
    try:
        port = _port(profile / "DevToolsActivePort")
        with client.connect(_target(port), max_size=None, proxy=None, open_timeout=60) as socket:
            browser = Browser(socket)
            browser.send("Page.enable")
            browser.send("Page.navigate", url=address)
            yield browser
    finally:
        process.terminate()
        process.wait(30)


def _port(file: Path) -> int:
    for _ in range(1200):
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.05)
    raise AssertionError("the browser has not started")


def _target(port: int) -> str:
    for _ in range(200):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            pages = [tab for tab in json.loads(answer.read()) if tab["type"] == "page"]
        if pages:
            return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.05)
    raise AssertionError("the browser has no tab")

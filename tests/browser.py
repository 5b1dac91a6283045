"""A headless Chromium that tests look through, by the DevTools protocol."""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
_TIMEOUT_S = 60.0


class Browser:
    """One page of a browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = count(1)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")
        self.requests: list[str] = []  # addresses that pages asked for

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Ask the browser for something, and give its answer."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._connection.send(json.dumps(message))
        while (answer := self._receive()).get("id") != number:
            pass
        assert "error" not in answer, (method, answer["error"])
        return dict(answer["result"])

    def open(self, page: Path, width: int, dark: bool = False, media: str = "screen") -> None:
        """Show a file, in a window of this width in CSS pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=page.absolute().as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def ask(self, expression: str) -> dict[str, Any]:
        """The object that a JavaScript expression gives on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return dict(answer["result"]["value"])

    def picture(self, y: float, width: float, height: float) -> bytes:
        """A band of the page, from `y` down, as a PNG; in CSS pixels."""
        clip = {"x": 0, "y": y, "width": width, "height": height, "scale": 1}
        options = {"clip": clip, "captureBeyondViewport": True}
        return base64.b64decode(self.call("Page.captureScreenshot", **options)["data"])

    def printed(self) -> bytes:
        """The page on A4 paper as a PDF, without backgrounds, as browsers print by default."""
        self.call("Emulation.setEmulatedMedia", media="print", features=[])
        size = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": False}
        return base64.b64decode(self.call("Page.printToPDF", **size)["data"])

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(timeout=_TIMEOUT_S))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in an empty folder; skips the test without Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine")
    command = [program, *_FLAGS, f"--user-data-dir={profile}"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = None
            while found is None and (line := process.stderr.readline()):
                found = re.search(r"DevTools listening on (ws://\S+)", line)
            assert found is not None, "Chromium ended before it could be asked"
            with connect(found[1], max_size=None, proxy=None) as connection:
                yield Browser(connection)
        finally:
            process.terminate()

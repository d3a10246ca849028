"""A headless Chromium, spoken to over a pair of pipes: no driver, no port, no extra package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str:
    """The browser's path. Its absence is a failure: an untested page is not a tested one."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise AssertionError(
            "no Chromium, which the tests of the HTML report need; on Debian or Ubuntu: "
            "apt-get update && apt-get install -y chromium"
        )
    return found


class Browser:
    """One page of one browser.

    Args:
        profile: an empty folder.
        dark: whether the page sees a user who prefers dark.
    """

    def __init__(self, profile: Path, dark: bool = False) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser expects its pipes at descriptors 3 and 4; a shell puts them there whatever their numbers are.
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options += [
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
        ]
        self._process = subprocess.Popen(
            ["bash", "-c", command, find_chromium(), *options, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self, seconds: float = 180) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"Chromium said nothing for {seconds:g} s")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise AssertionError(f"Chromium ended with code {self._process.wait()}")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def open(self, page: Path) -> None:
        """Load a file and wait until it is complete."""
        self.send("Page.navigate", url=page.as_uri())
        while self.evaluate("document.readyState") != "complete" or not self.evaluate(
            f"location.href.endsWith({page.name!r})"
        ):
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key, as a user would."""
        fields: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"Enter": "\r", " ": " "}.get(key)
        if text is not None:
            fields["text"] = text
        self.send("Input.dispatchKeyEvent", type="keyDown", **fields)
        self.send("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in fields.items() if k != "text"})

    def screenshot(self, path: Path, width: int = 1280) -> None:
        """The whole page as PNG."""
        size = {"mobile": False, "deviceScaleFactor": 1}
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, **size)
        height = min(12000, int(self.evaluate("document.documentElement.scrollHeight")))
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, **size)
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the page: exceptions, console messages, refused requests."""
        found = []
        for event in self.events:
            fields = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(fields["exceptionDetails"]))
            elif event.get("method") == "Runtime.consoleAPICalled" and fields["type"] in ("error", "warning"):
                found.append(str(fields["args"]))
            elif event.get("method") == "Log.entryAdded" and fields["entry"]["level"] in ("error", "warning"):
                found.append(str(fields["entry"]))
        return found

    @property
    def requests(self) -> list[str]:
        """Addresses the page asked for, itself and its inline data apart."""
        sent = [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith("data:") and not url.endswith("report.html")]

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(timeout=60)

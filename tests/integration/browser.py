"""A real browser, Debian's chromium, and what it sees of a page."""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

PHONE, DESKTOP = 390, 1280
"""Widths of windows in pixels."""
_PAGES_AT_ONCE = 4
"""Number of pages that `Browser.visit_all` opens at a time."""


@dataclass
class Visit:
    """What a browser saw of a page."""

    look: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    screenshot: bytes = b""


class Browser:
    """A headless chromium, spoken to by its DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        self._process = subprocess.Popen(
            [
                "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
            ],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"DevTools listening on ws://([^/]+)/", line):
                self._address = found.group(1)
                break
        else:
            raise AssertionError("chromium ended before it listened")
        # what it says later must not fill the pipe
        self._reader = threading.Thread(target=self._process.stderr.read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=600)
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def visit(self, url: str, look: str, width: int = DESKTOP, scheme: str = "light") -> Visit:
        """Open a page in a window of a width, in a light or dark mode, and evaluate the expression `look` there."""
        return asyncio.run(self._visit(url, look, width, scheme, takes_picture=True))

    def visit_all(self, urls: Sequence[str], look: str, width: int, scheme: str) -> list[Visit]:
        """Visit several pages at once, without screenshots."""

        async def visit_all() -> list[Visit]:
            limit = asyncio.Semaphore(_PAGES_AT_ONCE)

            async def visit(url: str) -> Visit:
                async with limit:
                    return await self._visit(url, look, width, scheme, takes_picture=False)

            return await asyncio.gather(*map(visit, urls))

        return asyncio.run(visit_all())

    async def _visit(self, url: str, look: str, width: int, scheme: str, takes_picture: bool) -> Visit:
        visit, loaded = Visit(), asyncio.Event()
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://{self._address}/json/new?about:blank") as answer:
                target = await answer.json(content_type=None)
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                waiting: dict[int, asyncio.Future[Any]] = {}

                async def listen() -> None:
                    async for message in socket:
                        said = message.json()
                        if "id" in said:
                            waiting.pop(said["id"]).set_result(said)
                        note(said)

                def note(said: dict[str, Any]) -> None:
                    method, values = said.get("method"), said.get("params", {})
                    if method == "Page.loadEventFired":
                        loaded.set()
                    elif method == "Log.entryAdded":
                        visit.errors.append(values["entry"]["text"])
                    elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                        visit.errors.append(str(values))
                    elif method == "Network.requestWillBeSent":
                        visit.requests.append(values["request"]["url"])

                async def ask(method: str, **values: Any) -> Any:
                    number = len(asked)
                    asked.append(method)
                    waiting[number] = asyncio.get_running_loop().create_future()
                    await socket.send_json({"id": number, "method": method, "params": values})
                    said = await asyncio.wait_for(waiting[number], 600)
                    assert "error" not in said, said
                    return said["result"]

                asked: list[str] = []
                listener = asyncio.create_task(listen())
                await self._look(visit, ask, loaded, url, look, width, scheme)
                if takes_picture:
                    taken = await ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
                    visit.screenshot = base64.b64decode(taken["data"])
                listener.cancel()
            async with session.get(f"http://{self._address}/json/close/{target['id']}"):
                pass
        return visit

    async def _look(
        self,
        visit: Visit,
        ask: Callable[..., Awaitable[Any]],
        loaded: asyncio.Event,
        url: str,
        look: str,
        width: int,
        scheme: str,
    ) -> None:
        for domain in ("Page", "Log", "Runtime", "Network"):
            await ask(f"{domain}.enable")
        window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        await ask("Emulation.setDeviceMetricsOverride", **window)
        await ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        visit.errors.clear()
        await ask("Page.navigate", url=url)
        await asyncio.wait_for(loaded.wait(), 600)
        await asyncio.sleep(0.3)  # what would ask the network now has done so
        answer = await ask("Runtime.evaluate", expression=look, returnByValue=True)
        visit.look = answer["result"].get("value", {})

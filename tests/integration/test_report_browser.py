"""The page of a report in a real browser, Debian's chromium: what it draws, what it says, and that nothing leaves."""

from __future__ import annotations

import asyncio
import base64
import functools
import http.server
import io
import re
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from .conftest import Finished

pytestmark = pytest.mark.browser

PHONE, DESKTOP = 390, 1280
LOOK = """(() => {
  const boxes = [...document.querySelectorAll('figure svg')].map(svg => svg.getBBox());
  const images = [...document.images];
  return {
    figures: document.querySelectorAll('figure').length,
    drawn: boxes.filter(box => box.width > 50 && box.height > 50).length,
    paths: Math.min(...[...document.querySelectorAll('figure svg')].map(svg => svg.querySelectorAll('path').length)),
    images: images.length,
    loaded: images.filter(image => image.complete && image.naturalWidth > 0).length,
    page_width: document.documentElement.scrollWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector('figure svg text')).fill,
    letters: Math.min(...[...document.querySelectorAll('figure svg text')].map(
      text => parseFloat(getComputedStyle(text).fontSize)
        * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b))),
    height: document.documentElement.scrollHeight,
  };
})()"""


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
        self._process.wait(timeout=30)
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def visit(self, path: Path, width: int = DESKTOP, scheme: str = "light") -> Visit:
        """Open a file in a window of a width, in a light or dark mode."""
        return asyncio.run(self._visit(path.as_uri(), width, scheme))

    async def _visit(self, url: str, width: int, scheme: str) -> Visit:
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
                    said = await asyncio.wait_for(waiting[number], 60)
                    assert "error" not in said, said
                    return said["result"]

                asked: list[str] = []
                listener = asyncio.create_task(listen())
                await self._look(visit, ask, loaded, url, width, scheme)
                listener.cancel()
            async with session.get(f"http://{self._address}/json/close/{target['id']}"):
                pass
        return visit

    async def _look(
        self, visit: Visit, ask: Callable[..., Awaitable[Any]], loaded: asyncio.Event, url: str, width: int, scheme: str
    ) -> None:
        for domain in ("Page", "Log", "Runtime", "Network"):
            await ask(f"{domain}.enable")
        window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        await ask("Emulation.setDeviceMetricsOverride", **window)
        await ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        visit.errors.clear()
        await ask("Page.navigate", url=url)
        await asyncio.wait_for(loaded.wait(), 60)
        await asyncio.sleep(0.3)  # what would ask the network now has done so
        answer = await ask("Runtime.evaluate", expression=LOOK, returnByValue=True)
        visit.look = answer["result"].get("value", {})
        taken = await ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        visit.screenshot = base64.b64decode(taken["data"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def report(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run, with a sweep, by the real command."""
    folder = tmp_path_factory.mktemp("report")
    sweep = ["--set", "evaluate.sweep.steps=[2,4,8]", "--set", "evaluate.sweep.guidance_scales=[1,2]"]
    common = ["--set", "evaluate.draws=2", "--set", "evaluate.sample.steps=4", "--set", "evaluate.splits=[test]"]
    finished.workspace.run("evaluate", "--evaluation", str(folder / "swept"), *common, *sweep)
    finished.workspace.run("report", str(folder / "swept"), "--output", str(folder / "report.html"))
    return folder / "report.html"


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_drawn_and_nothing_leaves(browser: Browser, report: Path, width: int, scheme: str) -> None:
    seen = browser.visit(report, width, scheme)
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []
    look = seen.look
    assert look["figures"] == look["drawn"] == report.read_text().count("<figure")
    assert look["figures"] >= 14
    assert look["paths"] > 10
    assert look["images"] == look["loaded"] > 100
    assert look["page_width"] <= width  # what is wider scrolls by itself
    assert look["letters"] >= 8.5  # pixels of the smallest letters in a plot
    assert look["ground"] == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 28)")
    assert look["ink"] == ("rgb(29, 35, 41)" if scheme == "light" else "rgb(228, 232, 236)")
    pixels = np.asarray(Image.open(io.BytesIO(seen.screenshot)).convert("L"))
    assert (pixels[:100].mean() > 128) == (scheme == "light")
    assert pixels.std() > 20


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, asked: list[str], *arguments: Any) -> None:
        self._asked = asked
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._asked.append(self.path)
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_page_that_would_ask_or_run_is_held_back_and_noticed(browser: Browser, report: Path, tmp_path: Path) -> None:
    """The policy holds against what escaping would have missed, and the checks above can fail."""
    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_address[1]}"
        hostile = (
            f'<img src="{base}/image.png"><script src="{base}/script.js"></script>'
            f'<script>fetch("{base}/fetched")</script><link rel="stylesheet" href="{base}/style.css">'
            f'<iframe src="{base}/frame"></iframe><div style="background:url({base}/background)">x</div></body>'
        )
        whole = report.read_text()
        (tmp_path / "hostile.html").write_text(whole.replace("</body>", hostile))
        seen = browser.visit(tmp_path / "hostile.html")
        assert asked == []
        assert len([error for error in seen.errors if "Content Security Policy" in error]) >= 5
        policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
        (tmp_path / "open.html").write_text(policy.sub("", whole).replace("</body>", hostile))
        seen = browser.visit(tmp_path / "open.html")
        assert {"/image.png", "/script.js", "/fetched", "/style.css", "/frame", "/background"} <= set(asked)
        assert seen.errors
        assert [url for url in seen.requests if url.startswith(base)]
    finally:
        server.shutdown()
        server.server_close()

"""A page as headless Chromium sees it: what it logs, what it asks for, how wide it is, and its pixels."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = "/usr/bin/chromium"
PHONE, DESK = 390, 1200  # pixels of width


@dataclass
class Look:
    """What one visit of a page shows."""

    errors: list[str] = field(default_factory=list)  # of the console and of scripts
    requests: list[str] = field(default_factory=list)  # beyond the page itself and data URIs
    overflow: int = 0  # pixels that the page is wider than the screen
    pixels: np.ndarray = field(default_factory=lambda: np.zeros((1, 1, 3), np.uint8))

    @property
    def background(self) -> float:
        """Mean brightness of the left edge, 0 to 255."""
        return float(self.pixels[:, :2].mean())

    @property
    def is_blank(self) -> bool:
        return float(self.pixels.astype(np.float32).std()) < 3


@contextmanager
def chromium() -> Iterator:
    """A browser; skips the test where there is none. Nothing is downloaded."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no {CHROMIUM} on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def look_at(browser, page_file: Path, *, width: int, scheme: str, save: Path | None = None) -> Look:
    """Opens a file offline; `scheme` is "light" or "dark". The pixels are of the first screen, with `save` of all."""
    look = Look()
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    try:
        page = context.new_page()
        page.on("console", lambda m: look.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: look.errors.append(str(error)))
        page.on("request", lambda request: look.requests.append(request.url))
        page.goto(page_file.resolve().as_uri())
        for summary in page.locator("summary").all():
            summary.click()
        look.overflow = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        page.evaluate("Promise.all([...document.images].map(i => i.decode().catch(() => 0)))")
        image = page.screenshot(full_page=save is not None)
    finally:
        context.close()
    own = page_file.resolve().as_uri()
    look.requests = [u for u in look.requests if u != own and not u.startswith("data:")]
    look.pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    if save is not None:
        save.write_bytes(image)
    return look

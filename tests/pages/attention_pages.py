"""What the tests of the attention page share: heads whose every weight is known, and a page open in a real browser."""

import base64
import io
import os
import shutil
from typing import NamedTuple

import numpy as np
from PIL import Image

from minigpt.inspection.snapshot import Snapshot

CHROMIUM = os.environ.get("MINIGPT_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic"]
ARGUMENTS += [
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-device-scale-factor=1",
]

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>\u2028\u2029",
    "&lt;b&gt;\"'`",
    "{{title}} {{data}}",
    "\u202eright to left",
    "\ud800",
)
WORDS = ("Once", " upon", " a", " time", "\n", "\tThe", " fox", " ran", ".\n", " Once", " upon", " a")
TITLE = "runs/<b>tiny</b> & co"

SELF, PREVIOUS, FIRST, UNIFORM, INDUCTION, HALF = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))


def known_heads(n_tokens, period=None):
    """(2, 3, T, T): heads whose every weight is known, one pattern each, in the order of the names above.

    `period` is where the text begins to repeat: the induction head attends to the token after the earlier copy.
    """
    period = period or n_tokens
    maps = np.zeros((2, 3, n_tokens, n_tokens), dtype=np.float32)
    for i in range(n_tokens):
        maps[(*SELF, i, i)] = 1
        maps[(*PREVIOUS, i, max(0, i - 1))] = 1
        maps[(*FIRST, i, 0)] = 1
        maps[(*UNIFORM, i, slice(0, i + 1))] = 1 / (i + 1)
        maps[(*INDUCTION, i, i - period + 1 if i >= period else 0)] = 1
        maps[(*HALF, i, 0)] += 0.7
        maps[(*HALF, i, i)] += 0.3
    return maps


def history(steps=(100, 200, 300), tokens=WORDS, period=9):
    """Snapshots that go from uniform attention to the known heads."""
    known = known_heads(len(tokens), period)
    uniform = np.broadcast_to(known[UNIFORM], known.shape)
    shares = np.linspace(0, 1, len(steps)) if len(steps) > 1 else [1.0]
    return [
        Snapshot(step, tokens, share * known + (1 - share) * uniform) for step, share in zip(steps, shares, strict=True)
    ]


class Relation(NamedTuple):
    name: str
    query: int
    keys: tuple[int, ...]


FREE: dict[object, list] = {}
"""Of each browser window, pages that no test looks at: a new one takes as long as what most tests do with it."""


class View:
    """A page opened from a file, with what it asked for and complained about."""

    def __init__(self, browser, path, width=1200, height=800):
        self.free = FREE.setdefault(browser, [])
        self.page = self.free.pop() if self.free else browser.new_page()
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.set_default_timeout(30_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.listeners = {
            "request": lambda request: self.requests.append(request.url),
            "console": lambda message: self.complaints.append(message.text),
            "pageerror": lambda error: self.complaints.append(str(error)),
            "dialog": lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()),
        }
        for name, listener in self.listeners.items():
            self.page.on(name, listener)
        self.url = path.as_uri()
        self.page.goto(self.url)
        self.page.wait_for_selector("html[data-ready='1']")

    def close(self):
        """Leave the page, as new, to the next test."""
        for name, listener in self.listeners.items():
            self.page.remove_listener(name, listener)
        self.page.emulate_media(color_scheme="null")
        self.page.mouse.move(0, 0)
        self.page.goto("about:blank")
        self.free.append(self.page)

    def state(self, name):
        return self.page.evaluate(f"document.documentElement.dataset.{name}")

    def selected(self):
        return int(self.state("layer")), int(self.state("head"))

    def text(self, selector):
        return self.page.locator(selector).text_content()

    def weight(self):
        return float(self.text("#readout-weight"))

    def select(self, head):
        self.page.locator(".thumb").nth(head[0] * 3 + head[1]).click()

    def hover(self, query, key):
        """Put the pointer on the middle of a cell of the large map."""
        self.page.mouse.move(*self.cell(query, key))

    def cell(self, query, key):
        self.page.locator("#large").scroll_into_view_if_needed()
        box = self.page.locator("#large").bounding_box()
        n_tokens = self.page.locator("#tokens span").count()
        return box["x"] + (key + 0.5) / n_tokens * box["width"], box["y"] + (query + 0.5) / n_tokens * box["height"]

    def pixels(self, selector="#large"):
        """(n, n, 4) RGBA of a canvas."""
        picture = self.page.evaluate("s => document.querySelector(s).toDataURL()", selector)
        return np.array(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))

    def shares(self):
        """How strongly each token of the text is coloured, 0 to 0.85."""
        return self.page.evaluate(
            "[...document.querySelectorAll('#tokens span')].map(s => +s.style.getPropertyValue('--share'))"
        )

    def ranking(self, which):
        rows = self.page.evaluate(
            "id => [...document.getElementById(id).children].map(li => [li.dataset.token, li.lastChild.textContent])",
            which,
        )
        return [(int(token), float(value.split()[-1].strip("<"))) for token, value in rows]

    def check_clean(self):
        # the live page's worker is made of a Blob, which is memory of the page itself
        assert [url for url in self.requests if not url.startswith("blob:")] == [self.url]
        assert self.complaints == []

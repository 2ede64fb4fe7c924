"""Draw a digit: the network in the page, in Chromium. The page is the directive's own element; the book need not be built."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import dcpnas_lite as dcp
from dcpnas_lite.evaluation.microbench import TABLES
from dcpnas_lite.packed import load

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update".split()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    from digit_bench import digit_bench

    static, path = ROOT / "book" / "_static", tmp_path_factory.mktemp("page") / "page.html"
    style, script = ((static / name).read_text(encoding="utf8") for name in ("custom.css", "digit.js"))
    path.write_text(
        '<!doctype html><html lang="en" data-theme="light"><meta charset="utf8">'
        '<meta name="viewport" content="width=device-width">'
        f'<style>{style}</style><main class="bd-article">{digit_bench()}</main><script>{script}</script></html>',
        encoding="utf8",
    )
    return path


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("no Chromium")
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as run:
        chromium = run.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, file):
    """A page of the given options; afterwards nothing was wrong and nothing was asked for."""
    wrong, contexts = [], []

    def open_page(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def said(page) -> str:
    return page.text_content(".digit-said")


def test_the_page_finds_what_python_finds(visit):
    page, data = visit(), dcp.digits()
    network, x, y = load(TABLES / "packed-digits.safetensors"), data.test.x[:100].numpy(), data.test.y[:100].numpy()
    found = network.predict(x)
    page.click("text=All 100 test digits")
    page.wait_for_function("document.getElementById('digit-bench').dataset.found")
    assert page.get_attribute("#digit-bench", "data-found") == "".join(map(str, found))
    assert said(page) == f"{(found == y).sum()} of 100 right."
    logits = network(x[:1])[0].astype(float)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    page.reload()  # begins with test digit 0
    shown = [float(cell) for cell in page.locator(".digit-shares td:nth-child(3)").all_text_contents()]
    assert shown == pytest.approx(shares, abs=0.0051)


def test_every_count_is_the_product(visit):
    page = visit()
    for pixel, filter_ in ((0, 0), (136, 3), (255, 15)):
        page.locator(".digit-pixel").fill(str(pixel))
        page.select_option(".digit-filter", str(filter_))
        rows = [row.split() for row in page.locator(".digit-bits tr").all_inner_texts()]
        image, weight, xnor = ([int(bit) for bit in row[1:]] for row in rows)
        assert [row[0] for row in rows] == ["image", "filter", "XNOR"]
        assert xnor == [int(a == b) for a, b in zip(image, weight, strict=True)]
        n, count = len(xnor), sum(xnor)
        sentence = f"{count} of {n} bits agree, 2 · {count} − {n} = {2 * count - n}; the layer's own product is {2 * count - n}."
        assert page.text_content(".digit-count").endswith(sentence)


def test_by_touch_on_a_phone(visit):
    """A stroke from the top to the bottom is a one."""
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    page.tap("text=Clear")
    canvas = page.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    touch = page.context.new_cdp_session(page)
    points = [(box["x"] + 130, box["y"] + 25 + 10 * k) for k in range(20)]
    for k, (x, y) in enumerate(points):
        kind = "touchMove" if k else "touchStart"
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert re.match("The network says [0-9]", said(page))
    inked = page.evaluate("c => c.getContext('2d').getImageData(64, 64, 1, 1).data[0] > 100", canvas_seen(page))
    assert inked, "the middle of what the network sees"
    for button in page.locator("button").all():
        assert button.bounding_box()["height"] >= 44


def ink(page, canvas: int) -> list[bool]:
    """Whether each of the 8 × 8 squares of a canvas (0 to draw on, 1 what the network sees) is lit in its middle."""
    return page.evaluate(
        """n => { const c = document.querySelectorAll("#digit-bench canvas")[n], s = c.width / 8, pen = c.getContext("2d");
        const lit = (x, y) => pen.getImageData((x + 0.5) * s, (y + 0.5) * s, 1, 1).data[0] > 0;
        return Array.from({ length: 64 }, (_, i) => lit(i % 8, i >> 3)); }""",
        canvas,
    )


def test_both_canvases_show_the_same(visit):
    """On load the sample, after Clear nothing, and the first stroke begins on an empty canvas."""
    page = visit()
    assert any(ink(page, 0)) and ink(page, 0) == ink(page, 1)
    page.click("text=A test digit")
    assert any(ink(page, 0)) and ink(page, 0) == ink(page, 1)
    page.click("text=Clear")
    assert not any(ink(page, 0)) and not any(ink(page, 1)) and said(page) == "Draw a digit."
    assert set(page.locator(".digit-shares td:nth-child(3)").all_text_contents()) == {"–"}
    page.click("text=A test digit")
    box = page.locator("canvas").first.bounding_box()
    page.mouse.move(box["x"] + 16, box["y"] + 16)
    page.mouse.down()
    page.mouse.move(box["x"] + 16, box["y"] + 120)
    page.mouse.up()
    assert not any(lit for i, lit in enumerate(ink(page, 0)) if i % 8 > 1), "nothing is left of the sample"


def canvas_seen(page):
    return page.locator("canvas.digit-seen").element_handle()


def test_by_keyboard(visit):
    page = visit()
    page.click("text=Clear")
    page.locator("canvas").first.focus()
    for key in ["ArrowUp"] * 6 + [" "] + ["ArrowDown"] * 12:
        page.keyboard.press(key)
    assert re.match("The network says [0-9]", said(page))
    before = said(page)
    page.keyboard.press(" ")
    page.keyboard.press("ArrowLeft")
    assert said(page) == before + " Pen up."


def test_without_scripts_a_product_stands_there(visit):
    page = visit(java_script_enabled=False)
    assert page.locator(".digit-static tr").count() == 3 and "Scripts are off" in page.inner_text("main")
    assert page.locator("canvas").count() == 0


def test_the_script_is_short_and_alone():
    source = (ROOT / "book" / "_static" / "digit.js").read_text(encoding="utf8")
    assert len(source.splitlines()) < 300
    assert not re.search(r"fetch\(|XMLHttpRequest|https?://|import\s*\(|\beval\b", source)

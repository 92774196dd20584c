"""The app in a real browser, as visitors see it; the videos are small."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from app_server import PATIENCE, idle, wait_for
from browser import needed

from sedialect.sedialect_core.config import SeDialectConfig

needed("gradio", "'sedialect[app]'")
needed("playwright.sync_api", "playwright")
LONG = 1000 * PATIENCE  # milliseconds
STATUS = "#sd-status"


@contextmanager
def visiting(browser: Any, served: Any, width: int = 1280, dark: bool = False) -> Iterator[Any]:
    """A page of a new visitor. It fails on any error in the page's scripts, and on any request that leaves the server."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    page.set_default_timeout(LONG)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    page.on("request", lambda request: None if local(request.url, served) else faults.append(request.url))
    page.goto(served.address)
    page.get_by_label("Prompt", exact=True).wait_for()
    yield page
    context.close()
    assert not faults


def local(url: str, served: Any) -> bool:
    return url.startswith((served.address, "data:", "blob:"))


def generate(page: Any, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate both videos").click()
    page.locator("#sd-numbers .sd-caption").get_by_text(prompt).wait_for()


def test_a_visitor_compares_looks_inside_and_finds_no_script_in_a_prompt(browser, served):
    with visiting(browser, served) as page:
        assert page.title() == "sedialect"
        prompt = "a red ball <img src=x onerror=alert(1)> moves left"
        generate(page, prompt)
        assert "The bundled model does not know: <img" in page.locator(STATUS).inner_text()
        player = page.locator("#sd-compare")
        player.get_by_role("button", name="Play").wait_for()
        divider = player.locator("[role=slider]")
        divider.wait_for()
        before = divider.get_attribute("aria-valuenow")
        divider.focus()
        page.keyboard.press("ArrowLeft")
        assert float(divider.get_attribute("aria-valuenow")) < float(before), "keys move the line"
        box = player.locator("canvas").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 3)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 3, steps=4)
        page.mouse.up()
        assert float(divider.get_attribute("aria-valuenow")) > 80, "the pointer moves it, too"
        rows = page.locator("#sd-numbers tbody tr th").all_inner_texts()
        assert rows[:4] == ["Transformer memory", "Seconds a step", "Bits a weight", "Bits an activation"]
        assert {"PSNR", "SSIM", "ColorVideoVDP", "Flicker of the error"} <= set(rows)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download quantized").click()
        assert download.value.suggested_filename == "quantized.mp4"
        look_inside(page)


def look_inside(page: Any) -> None:
    page.get_by_role("tab", name="Inside").click()
    page.get_by_role("button", name="Look inside the last run").click()
    shown = page.locator("#sd-inside")
    shown.get_by_text("Encoding error of each token").wait_for()
    assert shown.locator(".sd-strip > div").count() == 2, "five frames are two of tokens"
    title = "Dialects that its activations chose in step"
    assert shown.get_by_role("heading", name=f"{title} 1").count() == 1
    page.get_by_label("number input for Step", exact=True).fill("2")
    page.get_by_label("number input for Step", exact=True).press("Tab")
    shown.get_by_role("heading", name=f"{title} 2").wait_for()
    assert shown.get_by_role("heading", name="Saliency").count() == 0, "the run had none"
    page.get_by_label("With saliency and groups").check()
    page.get_by_role("button", name="Look inside the last run").click()
    for title in ("Saliency", "Token groups", "Sub-formatbook of each group"):
        shown.get_by_role("heading", name=title).wait_for()


def test_a_run_is_cancelled_by_the_button_and_the_page_can_go_on(browser, served):
    with visiting(browser, served) as page:
        steps = page.get_by_label("number input for Steps")
        steps.fill("50")
        steps.press("Tab")
        for _ in range(3):  # again and again: what a run has told before must not reach the page after its end
            page.get_by_role("button", name="Generate both videos").click()
            page.locator(".sd-previews img").first.wait_for()
            page.get_by_role("button", name="Cancel").first.click()
            page.locator(STATUS).get_by_text("Cancelled.").wait_for()
            wait_for(lambda: idle(served), "the end of the run")
            page.wait_for_timeout(500)
            assert page.locator(STATUS).inner_text() == "Cancelled."
        steps.fill("1")
        steps.press("Tab")
        generate(page, "a green star moves up")


def test_closing_the_page_in_the_middle_ends_the_run(browser, served):
    with visiting(browser, served) as page:
        steps = page.get_by_label("number input for Steps")
        steps.fill("50")
        steps.press("Tab")
        page.get_by_role("button", name="Generate both videos").click()
        page.locator(".sd-previews img").first.wait_for()
    wait_for(lambda: idle(served), "the end of the run")


def test_a_visitor_in_line_sees_the_place_and_can_leave_it(browser, served):
    gate = threading.Event()
    before = served.service.studio.run(lambda pipe, run: gate.wait(PATIENCE), steps=1, stages=1, seconds=PATIENCE)
    with before, visiting(browser, served) as page:
        page.get_by_role("button", name="Generate both videos").click()
        page.locator(STATUS).get_by_text("in line: 1 before yours").wait_for()
        page.get_by_role("button", name="Cancel").first.click()
        page.locator(STATUS).get_by_text("Cancelled.").wait_for()
        assert not gate.is_set(), "the run before it goes on"
        gate.set()
        generate(page, "a green star moves up")


def test_advanced_settings_follow_the_preset_and_reach_the_run(browser, served):
    with visiting(browser, served) as page:
        page.get_by_text("Advanced settings of the quantized video").click()
        page.get_by_label("compact").check()
        page.wait_for_function("document.querySelector('[aria-label=\"Block size\"]').value === '32'")
        page.get_by_label("Rotation").click()
        page.get_by_role("option", name="32", exact=True).click()
        page.get_by_label("Part of all video tokens").fill("0.25")
        page.get_by_label("Group tokens").check()
        page.get_by_label("Window frames").fill("1, 2, 2")
        page.get_by_label("Steps with 8-bit activations Number of steps").fill("1 0")
        page.get_by_label("Or at these parts of the run").fill("0, 0.5")
        page.get_by_label("Precision of some layers").fill("blocks.0. = w4a8")
        page.get_by_label("Layers left in 16 bit").fill("attn2")
        generate(page, "a red ball moves left")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download numbers").click()
        config = json.loads(Path(download.value.path()).read_text())["config"]
    expected = SeDialectConfig.preset(
        "compact",
        rotation=32,
        salient_ratio=0.25,
        semantic=True,
        semantic_window=(1, 2, 2),
        protected_steps=(1, 0),
        refresh_at=(0, 0.5),
        layer_precisions=((r"blocks\.0\.", "w4a8"),),
        skip=("attn2",),
    )
    assert config == json.loads(json.dumps(expected.to_dict()))


def test_a_model_that_could_not_be_loaded_is_told_at_once(browser, served, monkeypatch):
    monkeypatch.setattr(served.service.studio, "failed", "cannot load the pipeline 'there': no such folder")
    with visiting(browser, served) as page:
        page.locator(STATUS).get_by_role("alert").get_by_text("cannot load the pipeline 'there'").wait_for()


def test_bad_inputs_are_told_in_the_page(browser, served):
    with visiting(browser, served) as page:
        prompt = page.get_by_label("Prompt", exact=True)
        prompt.fill("   ")
        page.get_by_role("button", name="Generate both videos").click()
        page.get_by_role("alert").get_by_text("the prompt is empty").wait_for()
        prompt.fill("x" * 10_000)
        assert len(prompt.input_value()) == served.service.offer.prompt_characters
        page.get_by_role("tab", name="Formats").click()
        page.get_by_label("Numbers", exact=True).fill("1 2 drei")
        page.get_by_role("button", name="Encode").click()
        page.locator("#sd-steps").get_by_role("alert").get_by_text("give numbers").wait_for()
        page.get_by_label("Take them from").click()
        page.get_by_role("option", name="transformer.blocks.3.ffn.net.2").click()
        page.locator("#sd-steps").get_by_text("Beside MXFP4 and NVFP4").wait_for()
        page.get_by_text("The formatbook: every dialect").click()
        page.locator("#sd-book img").wait_for()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_width_overflows_and_texts_stand_out_in_light_and_dark(browser, served, width, dark):
    with visiting(browser, served, width, dark) as page:
        assert page.evaluate("document.body.classList.contains('dark')") == dark
        page.get_by_text("Advanced settings of the quantized video").click()
        for tab in ("Inside", "Formats", "Benchmark", "Compare"):
            page.get_by_role("tab", name=tab).click()  # each has its place beside the others, none is in a menu
            page.get_by_role("tab", name=tab, selected=True).wait_for()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        contrast = page.evaluate(CONTRAST, ".sd-message")
        assert contrast >= 4.5, "WCAG 2.2, 1.4.3"
        unnamed = page.evaluate(UNNAMED)
        assert unnamed == [], "every control has a name"


CONTRAST = """(selector) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(Number).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(document.querySelector(selector));
  const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""
UNNAMED = """() => [...document.querySelectorAll("button, input, textarea, select")]
  .filter((e) => e.checkVisibility() && e.type !== "hidden")
  .filter((e) => !(e.innerText?.trim() || e.ariaLabel || e.title || e.labels?.length || e.getAttribute("aria-labelledby")))
  .map((e) => e.outerHTML.slice(0, 160))"""

"""Writes docs/app-*.png, the app's tabs with its model: `python tests/helpers/make_app_pictures.py`, minutes on a CPU."""

from pathlib import Path
from typing import Any

from app_server import serving
from browser import chromium

from sedialect.web.kept_results import read_quality

DOCS = Path(__file__).parents[2] / "docs"
PATIENCE = 900_000  # milliseconds
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def compare(page: Any) -> None:
    """Both videos of the first tab, and what was measured."""
    page.get_by_role("button", name="Generate both videos").click()
    page.locator("#sd-numbers .sd-caption").wait_for()
    page.locator("#sd-compare [role=slider]").wait_for()
    page.wait_for_timeout(1000)


def look_inside(page: Any) -> None:
    """The second tab, with everything that it can show."""
    page.get_by_role("tab", name="Inside").click()
    page.get_by_label("With saliency and groups").check()
    page.get_by_role("button", name="Look inside the last run").click()
    page.locator("#sd-inside").get_by_role("heading", name="Token groups").wait_for()


def photograph(page: Any, name: str, whole: bool = True) -> None:
    """One picture, once the page stands still."""
    page.wait_for_timeout(800)
    page.screenshot(path=str(DOCS / f"app-{name}.png"), full_page=whole)


def main() -> None:
    """A visitor at a desk goes through all tabs; one with a phone, in the dark, compares."""
    with serving(steps=20, side=128, frames=33) as served, chromium() as browser:
        page = browser.new_page(viewport=DESK)
        page.set_default_timeout(PATIENCE)
        page.goto(served.address)
        compare(page)
        photograph(page, "compare")
        look_inside(page)
        photograph(page, "inside")
        page.get_by_role("tab", name="Formats").click()
        photograph(page, "formats")
        if read_quality() is not None:
            page.get_by_role("tab", name="Benchmark").click()
            photograph(page, "benchmark")
        page.close()
        page = browser.new_page(viewport=PHONE, color_scheme="dark")
        page.set_default_timeout(PATIENCE)
        page.goto(served.address)
        compare(page)
        page.evaluate("document.querySelector('#sd-status').scrollIntoView()")
        photograph(page, "phone", whole=False)


if __name__ == "__main__":
    main()

"""The page in a real browser, Debian's Chromium, at the widths of a desktop and of a phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.faces
WAIT, JOB = 20_000, 120_000
"""Milliseconds, for the page and for a job to end."""
TABS = ("Generate", "Edit", "Queue", "Gallery", "Subjects", "Tune", "Compare")


@pytest.fixture(params=[1280, 390])
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.set_default_timeout(WAIT)
    outside: list[str] = []
    page.on("request", lambda one: None if _is_local(one.url, address) else outside.append(one.url))
    page.goto(address)
    page.locator("#generate").wait_for()
    yield page
    assert outside == []
    page.close()


def _is_local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def fill(page: Any, reference: Path) -> None:
    page.locator("#reference input[type=file]").set_input_files(reference)
    page.locator("#crop img").wait_for()
    page.locator("#category").get_by_role("textbox").fill("dog")
    page.locator("#prompts").get_by_role("textbox").fill("on the beach\nin the snow")
    page.get_by_text("More settings").click()
    page.get_by_label("number input for Steps").fill("60")


def expect_text(page: Any, selector: str, text: str, timeout: int = WAIT) -> None:
    """Wait for a text; a failure shows the text that is there instead."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=timeout)


def open_tab(page: Any, name: str) -> None:
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()


@pytest.fixture
def reference(tmp_path: Path, dog: Image.Image) -> Path:
    path = tmp_path / "dog.png"
    dog.save(path)
    return path


def test_generate_reload_cancel_and_reproduce(page: Any, reference: Path) -> None:
    fill(page, reference)
    page.locator("#generate").click()
    page.locator("#preview img").wait_for()
    page.reload()  # the job goes on, and the page finds it again
    expect_text(page, "#status", "Done: 4 images", timeout=JOB)
    assert page.locator("#results img").count() >= 4
    open_tab(page, "Gallery")
    page.locator("#gallery button img").first.click()
    page.locator("#settings").get_by_text("on the beach").first.wait_for()
    page.locator("#use-settings").click()
    page.locator("#crop img").wait_for()
    assert page.locator("#category").get_by_role("textbox").input_value() == "dog"
    page.locator("#generate").click()
    page.locator("#status progress").wait_for()
    page.locator("#cancel").click()
    expect_text(page, "#status", "Cancelled.")


def test_control_image(page: Any, reference: Path) -> None:
    fill(page, reference)
    assert page.get_by_label("edges").count() == 0  # the model has an adapter for depth alone
    page.get_by_label("depth map").check()
    page.get_by_label("number input for Control end").fill("0.5")
    page.locator("#generate").click()
    page.get_by_text("There is no control image").wait_for()
    page.locator("#control-image input[type=file]").set_input_files(reference)
    page.locator("#control-image img").wait_for()
    page.locator("#generate").click()
    page.get_by_text("The control image is no depth map").wait_for()
    Image.linear_gradient("L").save(reference.with_name("depth.png"))
    page.locator("#control-image").get_by_label("Remove").click()
    page.locator("#control-image input[type=file]").set_input_files(reference.with_name("depth.png"))
    page.locator("#control-image img").wait_for()
    page.locator("#generate").click()
    expect_text(page, "#status", "Done: 4 images", timeout=JOB)
    open_tab(page, "Gallery")
    page.locator("#gallery button img").first.click()
    page.locator("#settings").get_by_text("depth, scale 1, until 0.5 of the steps").wait_for()


def test_edit_with_a_brush(page: Any, reference: Path) -> None:
    open_tab(page, "Edit")
    page.locator("#photo input[type=file]").set_input_files(reference)
    page.locator("#edit-from").get_by_role("textbox").fill("dog")
    page.locator("#edit-to").get_by_role("textbox").fill("cat")
    page.get_by_label("Brush", exact=True).check()
    page.locator("#edit").click()
    page.get_by_text("Nothing is painted").wait_for()
    page.wait_for_timeout(1500)  # until the editor has drawn the photo
    canvas = page.locator("#mask-editor canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    page.mouse.move(x + 30, y + 20, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.locator("#edit").click()
    expect_text(page, "#edit-status", "Done: 1 image", timeout=JOB)
    page.reload()
    page.locator("#generate").wait_for()
    open_tab(page, "Edit")
    page.locator("#edit-results").get_by_text("Photo", exact=True).first.wait_for()
    assert page.locator("#edit-results img").count() >= 2


def test_every_tab_fits_and_passes_axe(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for name in TABS:
        open_tab(page, name)
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
        result = axe.run(page).response["violations"]
        serious = {one["id"] for one in result if one["impact"] in ("critical", "serious")}
        assert serious == set(), (name, result)


def test_invalid_form_shows_a_message(page: Any) -> None:
    page.locator("#generate").click()
    page.get_by_text("The prompt is empty").wait_for()
    assert page.locator("#generate").is_enabled()

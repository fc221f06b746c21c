"""The page in headless Chromium: filters, sorting, tips, keyboard, both widths."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sam3slim.report.gallery import data_uri
from sam3slim.report.page import write_comparison
from sam3slim.report.rows import comparison_rows
from sam3slim.results.collect import collect

from .compare_runs import add_failed, add_newer, add_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install -e '.[browser]'")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH; install Debian's package chromium")
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
NASTY = "</script><img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "runs"
    for i, family in enumerate(("nano", "nano_slim")):
        for j, precision in enumerate(("fp32", "fp16", "int8_weight")):
            add_run(
                folder, f"{family}_{precision}", family=family, precision=precision,
                bytes=10_000_000 // (1 + i) // (1 + j), segm=0.8 - 0.1 * i - 0.01 * j,
            )  # fmt: skip
    add_run(folder, "other_machine", device="another", segm=0.75)
    add_run(folder, "again", config_hash="nano_fp32", segm=0.5, command=NASTY)
    old = {"path": "elsewhere", "bytes": 9_000_000, "format": "hf", "precision": "fp32"}  # without bytes by part
    add_run(folder, "elsewhere", data={"protocol": "present"}, artifact=old)
    add_failed(folder, "failed", error=NASTY)
    add_newer(folder, "newer")
    (folder / "nano_fp32" / "metrics.csv").write_text("step,val/segm_map\n10,0.1\n20,0.5\n")
    return folder


@pytest.fixture(scope="module")
def page_file(runs: Path) -> Path:
    found = collect([runs])
    names = {run.folder.name: str(run.folder) for run in found.groups[0].runs}
    gallery = {
        "names": ["1.jpg", NASTY],
        "truth": [picture("ground truth: 1 instance, dog")] * 2,
        "runs": {names[name]: [picture(f"{name}: nothing")] * 2 for name in ("nano_fp32", "nano_slim_fp16")},
        "missing": {names["again"]: "its artifact is gone"},
        "phrases": ["dog", NASTY],
    }
    return write_comparison(found, runs.parent / "out", {0: gallery})[-1]


def picture(alt: str) -> dict[str, str]:
    return {"src": data_uri(Image.new("RGB", (288, 200), "teal")), "alt": alt}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """Opened at laptop width; errors in the script and requests beyond the file fail the test."""
    page = browser.new_page(viewport=LAPTOP)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if request.url.startswith("file:") else faults.append(request.url))
    page.goto(page_file.as_uri())
    yield page
    page.close()
    assert faults == []


def column(page: Any, number: int) -> list[str]:
    return page.locator(f"#table tbody td:nth-child({number})").all_inner_texts()


def test_page__groups_are_apart_and_it_says_so(page: Any) -> None:
    assert "3 groups" in page.inner_text("#groups-note")
    assert page.locator("#table tbody tr").count() == page.locator("#plot .point").count() == 8
    page.select_option("#group", "1")
    assert page.locator("#plot .point").count() == 1
    page.select_option("#group", "2")
    assert page.is_hidden("#plot-section")
    assert page.inner_text("#table tbody tr.failed td:nth-child(12)") == f"failed: {NASTY}"
    assert "schema 99" in page.inner_text("#unread")
    assert page.title() == "sam3slim: comparison of runs"


def test_page__same_configuration_and_other_numbers_are_marked(page: Any) -> None:
    marked = page.locator("#table tr.conflict td:nth-child(13)").all_inner_texts()
    assert {Path(text).name for text in marked} == {"nano_fp32", "again"}


def test_page__filters(page: Any) -> None:
    page.uncheck("#precision input[value=fp32]")
    assert set(column(page, 3)) == {"fp16", "int8_weight"}
    page.uncheck("#family input[value=nano]")
    assert page.locator("#plot .point").count() == 2
    page.fill("#search", "slim_fp16")
    assert page.locator("#plot .point").count() == page.locator("#table tbody tr").count() == 1
    assert page.inner_text("#count") == "1 of 8 runs shown"
    page.fill("#search", "no such run")
    assert "No run shown" in page.inner_text("#plot")


def test_page__latency_shows_one_machine_at_a_time(page: Any) -> None:
    assert page.is_hidden("#machine-label")
    page.select_option("#cost", "latency_p50_ms")
    counts = []
    for option in page.locator("#machine option").all():
        page.select_option("#machine", option.get_attribute("value"))
        counts.append(page.locator("#plot .point").count())
    assert sorted(counts) == [1, 7]


def test_page__sort_by_keyboard(page: Any) -> None:
    head = page.locator("th", has=page.locator("[data-sort=bytes]"))
    page.focus("[data-sort=bytes]")
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    first = column(page, 6)
    page.keyboard.press("Enter")  # the button keeps the focus
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, 6)[0] == "1.67 MB"
    assert first[0] == "10 MB"
    assert page.locator("th[aria-sort]").count() == 1


def test_page__tip_on_hover_and_on_focus(page: Any) -> None:
    point = page.locator("#plot .point[aria-label^='nano_slim fp16']")
    point.hover()
    assert "python evaluate.py checkpoint=nano_slim_fp16" in page.inner_text("#tip")
    assert "drop 1.00 (0.50 to 1.50)" in page.inner_text("#tip")
    page.mouse.move(1, 1)
    assert page.is_hidden("#tip")
    point.focus()
    assert "data=shapes" in page.inner_text("#tip")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


def test_page__choosing_a_point_by_keyboard_draws_it_below(page: Any) -> None:
    page.locator("#plot .point[aria-label^='nano_slim fp16']").focus()
    page.keyboard.press("Enter")
    assert page.locator("#table input:checked").count() == 1
    assert page.locator("#parts .bar").count() == 1
    assert page.get_attribute("#parts .bar", "aria-label") == (
        "nano_slim fp16, 2.5 MB: vision 1.5 MB, text 750 kB, other 250 kB"
    )
    page.select_option("#unit", "params")
    assert "vision 1 M, text 600 k" in page.get_attribute("#parts .bar", "aria-label")
    page.locator("#plot .point[aria-label^='nano_slim fp16']").focus()
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"


def test_page__bytes_by_part_are_missing_in_older_records(page: Any) -> None:
    assert page.input_value("#unit") == "bytes"
    assert page.locator("#parts .bar").count() > 1
    page.select_option("#group", "1")
    assert page.input_value("#unit") == "params"
    page.select_option("#unit", "bytes")
    assert "older records do not" in page.inner_text("#parts")


def test_page__pictures_side_by_side(page: Any) -> None:
    captions = page.locator("#gallery .image").first.locator("figcaption").all_inner_texts()
    assert captions == ["ground truth", "nano fp32, 10 MB", "nano_slim fp16, 2.5 MB"]
    assert page.locator("#gallery h3").all_inner_texts() == ["1.jpg", NASTY]
    images = page.locator("#gallery img")
    assert images.count() == 6
    assert images.first.get_attribute("alt") == "ground truth: 1 instance, dog"
    assert images.evaluate_all("all => all.map(one => one.naturalWidth)") == [288] * 6
    assert f"Looked for: dog, {NASTY}" in page.inner_text("#gallery-note")


def test_page__pictures_of_the_chosen_runs(page: Any) -> None:
    page.locator("#table tr", has_text="nano_slim_fp16").locator("input").check()
    assert page.locator("#gallery img").count() == 4
    page.locator("#table tr", has_text="other_machine").locator("input").check()
    assert page.locator("#gallery img").count() == 4
    assert "1 of the chosen have no pictures" in page.inner_text("#gallery-note")
    page.select_option("#group", "1")
    assert page.is_hidden("#gallery-section")


def test_page__curves(page: Any) -> None:
    assert page.locator("#curves polyline").count() == 1
    page.select_option("#curve", "train/loss")
    assert "No run shown has this curve" in page.inner_text("#curves")


def test_page__front_is_the_one_of_the_table(page: Any, runs: Path) -> None:
    rows = comparison_rows(collect([runs]).groups[0])
    expected = sorted(f"{row['name']} {row['precision']}" for row in rows if row["pareto"])
    labels = page.locator("#plot .point[aria-label$='on the Pareto front']").all()
    assert sorted(label.get_attribute("aria-label").split(":")[0] for label in labels) == expected


def test_page__everything_has_a_name(page: Any) -> None:
    nameless = page.evaluate("""[...document.querySelectorAll("input,select,button,svg,[role=img]")].filter(e =>
        !e.getAttribute("aria-label") && !e.getAttribute("aria-hidden") && !e.closest("label") && !e.textContent
    ).length""")
    assert nameless == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page__text_has_contrast(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    colors = {
        name: page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()")
        for name in ("--paper", "--card", "--ink", "--soft", "--link")
    }
    for paper in ("--paper", "--card"):
        for ink in ("--ink", "--soft", "--link"):
            assert contrast(colors[ink], colors[paper]) >= 4.5, (ink, paper)


def contrast(a: str, b: str) -> float:
    """WCAG's ratio of two hex colours."""

    def luminance(color: str) -> float:
        digits = color.lstrip("#")
        digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        red, green, blue = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_page__fits_its_width(page: Any, size: dict[str, int]) -> None:
    page.set_viewport_size(size)
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        assert picture.size == (size["width"], size["height"])
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or []) > 20

"""The report as a reader meets it: in a browser, without a network, at two widths; and the files it comes in."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from markupsafe import escape

from tests.weightformer.test_compare import toy_shared, toy_specialists
from tests.weightformer.test_report_pictures import LONG, ROWS, comparison, methods, row
from weightformer import report
from weightformer.compare import same_task, specialists
from weightformer.compare.table import Comparison, Gate
from weightformer.report import page
from weightformer.report.files import write_text

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ABOUT = report.About(83.2, {"torch": "2.0", "python": "3.11"}, 1, "weightformer demo --seed 0")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)

# Every element whose text is wider than its box, except boxes that are there to scroll; and pictures that are broken.
TOO_WIDE = """() => [...document.querySelectorAll("body, body *")]
  .filter(e => !e.matches(".scroll") && getComputedStyle(e).display !== "inline" && e.scrollWidth > e.clientWidth)
  .map(e => `${e.tagName}.${e.className}: ${e.scrollWidth} > ${e.clientWidth}: ${e.textContent.trim().slice(0, 60)}`)"""
BEYOND = """() => [...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".scroll") && e.getBoundingClientRect().right > document.documentElement.clientWidth)
  .map(e => `${e.tagName}.${e.className}`)"""
IMAGES = """() => [...document.images].map(i => [i.naturalWidth, i.alt, Math.round(100 * i.width / i.height),
  Math.round(100 * i.naturalWidth / i.naturalHeight)])"""
WIDTHS = "() => [...document.images].map(i => i.width)"


@pytest.fixture(scope="module")
def shared() -> Comparison:
    return same_task.run(toy_shared(), seed=0)[0]


@pytest.fixture(scope="module")
def special() -> Comparison:
    return specialists.run(toy_specialists(), seed=0)[0]


@pytest.fixture(scope="module")
def awkward() -> Comparison:
    """Long and strange names, a method without a number, a gate that is NaN, settings of any kind."""
    rows = [replace(r, method=f"{LONG} {i}", note=LONG if i % 2 else "") for i, r in enumerate(ROWS)]
    strange = row("<script>alert(1)</script> & 'friends' " + "x" * 90, 50.0, 51.0)
    found = comparison([*rows, strange, row("broken", math.nan, math.nan)])
    found.title, found.about = f"<b>{LONG}</b> " * 2, "y" * 300
    found.gates.append(Gate(f"{LONG} {LONG}", math.nan, -0.5))
    found.facts.append(("z" * 200, -12345.678, "u" * 50))
    found.settings = {"a" * 80: {"b" * 80: [1.5, None, True]}, "c": "d" * 200}
    return found


def absent(what: str) -> NoReturn:
    """Skip what needs a browser; where CI is set, nobody would see that it was skipped, so fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; CI is set, so the report must be looked at")
    pytest.skip(what)


@pytest.mark.parametrize(("value", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_a_browser_the_pages_are_skipped_but_not_in_ci(
    value: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", value)
    with pytest.raises(outcome, match="no Chromium"):
        absent("no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        absent(f"no Chromium is installed: none of {', '.join(CHROMIUM)} is on the path")
    try:
        import playwright.sync_api as playwright
    except ImportError:
        absent("playwright is not installed; it is part of the extra [test]")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=executable, args=ARGUMENTS.split())
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(shared: Comparison, special: Comparison, awkward: Comparison) -> dict[str, str]:
    found = {"shared": shared, "special": special, "awkward": awkward}
    return {name: report.render(one, ABOUT) for name, one in found.items()}


@pytest.mark.parametrize("which", ["shared", "special", "awkward"])
def test_a_browser_shows_the_whole_page(which: str, pages: dict[str, str], browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(pages[which])
    requests: list[str] = []
    faults: list[str] = []
    opened = browser.new_page()
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("console", lambda message: faults.append(message.text))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    for width in (1280, 800, 400):
        opened.set_viewport_size({"width": width, "height": 900})
        opened.goto(path.as_uri(), wait_until="load")
        images = opened.evaluate(IMAGES)
        assert len(images) >= 7 and len(images) == opened.locator("figure").count()
        for natural, alt, shown, drawn in images:
            assert natural > 0 and len(alt) > 40 and abs(shown - drawn) <= 1
        assert opened.evaluate(TOO_WIDE) == [], width
        assert opened.evaluate(BEYOND) == [], width
        if width == 1280:
            assert {image[0] for image in images} == {1120} == set(opened.evaluate(WIDTHS))
            sizes = opened.eval_on_selector_all(".scroll", "all => all.map(e => e.scrollWidth - e.clientWidth)")
            assert which == "awkward" or sizes == [0, 0], "the tables have room on a wide page"
    opened.close()
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()] * 3
    assert faults == []


def cells(browser: Browser, html: str, selector: str) -> list[list[str]]:
    opened = browser.new_page()
    opened.set_content(html)
    found: list[list[str]] = opened.eval_on_selector_all(
        selector, "rows => rows.map(r => [...r.cells].map(c => c.innerText.replaceAll('\\u00a0', ' ').trim()))"
    )
    opened.close()
    return found


def test_the_table_has_every_number_and_controls_stand_apart(
    special: Comparison, pages: dict[str, str], browser: Browser
) -> None:
    lines = cells(browser, pages["special"], ".results tbody tr")
    kinds = [line[0] for line in lines if len(line) == 1]
    assert kinds == ["WeightFormer", "Other methods", "Controls"]
    assert len(lines) - 3 == len(special.rows)
    start = next(i for i, line in enumerate(lines) if line == ["Controls"])
    assert len(lines[start + 1 :]) == sum(r.kind == "control" for r in special.rows)
    for r in special.rows:
        line = next(line for line in lines if line[0] in (r.method, *(f"{r.method}{mark}" for mark in range(1, 9))))
        mean, std = r.summary.mean, r.summary.std
        assert line[1:5] == [
            f"{mean.accuracy:.2f} ± {std.accuracy:.2f}",
            f"{mean.nll:.3f} ± {std.nll:.3f}",
            f"{mean.brier:.3f} ± {std.brier:.3f}",
            f"{mean.ece:.2f} ± {std.ece:.2f}",
        ]
        assert line[5] == f"{mean.temperature:.2f}"
        assert line[8:11] == [str(r.cost.passes), f"{r.cost.parameters:,}", f"{r.cost.steps:,}"]


def test_gates_facts_and_settings_are_on_the_page(special: Comparison, pages: dict[str, str], browser: Browser) -> None:
    html = pages["special"]
    lines = cells(browser, html, ".gates tbody tr")
    assert [line[0] for line in lines] == [gate.text for gate in special.gates]
    assert [line[3].split()[1] for line in lines] == ["holds" if gate.holds else "MISSED" for gate in special.gates]
    for text in ("weightformer demo --seed 0", "1\u00a0min\u00a023\u00a0s", "recipe.steps", special.facts[0][0], "2.0"):
        assert text in html
    assert str(escape(special.about)) in html


def test_the_unit_of_a_gate_stands_behind_both_numbers() -> None:
    found = Comparison("t", 0, 2, gates=[Gate("one prediction", 8.714, 50.0, at_most=True, unit="ms")])
    html = report.render(found, ABOUT)
    assert "8.71\u00a0ms</td>" in html and "at most 50\u00a0ms</td>" in html
    console = report.console()
    with console.capture() as captured:
        console.print(report.show(found, 1.0))
    assert "one prediction: 8.71 <= 50 ms holds" in captured.get()


def test_prior_matching_takes_the_time_of_what_it_is_put_on(special: Comparison) -> None:
    for r in special.rows:
        if r.method.endswith(" + pm") and not r.method.startswith("single"):
            assert r.seconds > special.row(r.method.removesuffix(" + pm")).seconds


def test_names_are_text_and_never_markup(pages: dict[str, str]) -> None:
    html = pages["awkward"]
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#39;friends&#39;" in html
    assert "MISSED" in html and "\u2013" in html  # a gate that is NaN does not hold; NaN is shown as nothing


def test_one_group_has_no_spread() -> None:
    single = methods(*[replace(r, metrics=r.metrics[:1]) for r in ROWS])
    html = report.render(single, ABOUT)
    assert "±" not in html and "nan" not in html and "1 group of held-out" in html


def test_a_comparison_without_anything_is_a_page() -> None:
    assert "<h1>nothing</h1>" in report.render(Comparison("nothing", 0, 0), report.About(1.0))


def test_the_page_can_be_made_again_from_the_json_file(
    special: Comparison, pages: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    report.write_json(special, path, 83.2, command="weightformer compare")
    again, about = report.read_json(path)
    assert about == report.About.now(83.2, "weightformer compare")
    assert report.render(again, ABOUT) == pages["special"]
    lines = path.read_text().splitlines()
    assert len(lines) < 6000, "a list of numbers takes one line"
    assert json.loads(path.read_text())["rows"][0]["method"] == special.rows[0].method


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"total_seconds": 1, "versions": {}, "threads": 1}', "\xff"])
def test_another_file_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=r"other\.json: is no comparison that --json wrote") as caught:
        report.read_json(path)
    assert "\n" not in str(caught.value)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    report.write_html(methods(*ROWS[:2]), path, 1.0, command="this & that")
    before = path.read_text()
    assert before.endswith("</html>") and "this &amp; that" in before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no room")

    for broken in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(broken, fail)
            with pytest.raises(OSError, match="no room"):
                write_text(path, "half")
        assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0, "3"),
        (-0.5, "\u22120.5"),
        (1234.5678, "1235"),
        (0.00012345, "0.0001234"),
        (math.nan, "\u2013"),
        (math.inf, "\u2013"),
    ],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert page.number(value) == text


def test_the_module_offers_what_it_names() -> None:
    assert all(callable(getattr(report, name)) for name in report.__all__)
    with pytest.raises(AttributeError, match="shows"):
        report.shows  # noqa: B018

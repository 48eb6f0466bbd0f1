"""Test that the report opens in a browser without errors and lists its categories in reading order."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import pytest
import report_screenshot
from playwright.sync_api import Page
from report_screenshot import open_category

from workflows import VARIANTS

PLOTS = ["divergence", "headline", "latency", "memory", "recovery_by_group", "recovery_by_subject", "training_loss"]


@pytest.fixture(scope="module")
def report(small_run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    result = small_run.snakemake("--report", path)
    assert result.returncode == 0, result.stderr[-3000:]
    return path


@pytest.fixture(scope="module")
def page(report) -> Iterator[Page]:
    """Yield the report in headless Chromium; fail if its console or a script reported an error."""
    if not report_screenshot.chromium():
        reason = "needs Chromium: `apt-get install chromium`"
        pytest.fail(reason) if os.environ.get("REQUIRE_CHROMIUM") else pytest.skip(reason)
    errors = []
    with report_screenshot.opened(report) as page:
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.reload()
        yield page
    assert errors == []


def test_the_first_page_says_what_to_read_and_shows_the_rule_graph(page):
    assert page.locator("h1", has_text="From a base model to int4").is_visible()
    assert page.locator(".prose ol a").all_inner_texts() == ["1 Results", "2 Plots", "3 Run"]
    page.locator("#rulegraph canvas, #rulegraph svg").first.wait_for()
    assert page.locator(".prose svg").bounding_box()["height"] > 100


def test_the_results_are_a_table_of_the_variants(page, tmp_path):
    open_category(page, "1 Results")
    table = page.frame_locator("iframe").locator("table", has_text="normalized degradation")
    names = table.locator("tbody tr td:first-child").all_inner_texts()
    assert names == VARIANTS
    report_screenshot.photograph(page, tmp_path / "report.png")
    assert matplotlib.image.imread(tmp_path / "report.png").std() > 0.05  # not a blank page


def test_every_plot_is_a_picture(page):
    open_category(page, "2 Plots")
    shown = {}
    for row in page.locator("nav").first.locator("tbody tr").all():
        row.locator("a").first.click()
        picture = page.locator("img:not(nav img)")
        name = re.search(r"filename=(\w+).svg", picture.get_attribute("src"))[1]
        shown[name] = picture.evaluate("image => image.decode().then(() => image.naturalWidth)")
    assert sorted(shown) == PLOTS
    assert min(shown.values()) > 300


def test_the_run_has_config_versions_and_costs(page):
    open_category(page, "3 Run")
    text = page.frame_locator("iframe").locator("body").inner_text()
    for wanted in ('"learning_rate": 0.003', "torchao", "finetune", "GPU time", "commit of the workflow"):
        assert wanted in text


def test_run_times_are_drawn(page):
    page.goto(page.url.partition("#")[0])
    page.get_by_role("link", name="Statistics").click()
    page.locator("#runtimes canvas, #runtimes svg").first.wait_for()

"""Take the picture of a report that docs/results.md shows, docs/report.png: `make report`, then this. Needs Chromium.

python docs/report_screenshot.py results/report.html
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURE = Path(__file__).parent / "report.png"
SIZE = {"width": 1400, "height": 860}


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).exists():
        sys.exit("report_screenshot: expected the path of a report, as `make report` writes it")
    if not chromium():
        sys.exit("chromium: expected a browser, found none on the PATH; its package is called chromium")
    with opened(Path(sys.argv[1])) as page:
        photograph(page, PICTURE)


def chromium() -> str | None:
    """Return the path of the browser's program, None if there is none."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def opened(report: Path) -> Iterator[Page]:
    """Yield a page of headless Chromium that shows the report, without a network."""
    with sync_playwright() as playwright:
        # Chromium's sandbox does not run as root.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium(), args=options)
        page = browser.new_context(offline=True, viewport=SIZE).new_page()
        page.goto(report.resolve().as_uri())
        yield page
        browser.close()


def open_category(page: Page, category: str) -> None:
    """Go from the first page to a category, and show the first of its results."""
    page.goto(page.url.partition("#")[0])
    page.locator(".prose a", has_text=category).click()
    page.locator("nav").first.locator("tbody tr a").first.click()


def photograph(page: Page, picture: Path) -> None:
    """Take a picture of the table of the variants."""
    open_category(page, "1 Results")
    heading = page.frame_locator("iframe").locator("h2", has_text="Quality")
    heading.evaluate("heading => heading.scrollIntoView()")
    page.screenshot(path=picture)


if __name__ == "__main__":
    main()

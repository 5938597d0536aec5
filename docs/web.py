"""Make docs/web.png: the page in Chromium, after mini painted its second example."""

import shutil
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from subjectgen.web.launch import show
from subjectgen.web.page import page_of
from subjectgen.web.studio import open_studio

SIZE = {"width": 1180, "height": 900}
MILLISECONDS = 300_000


def main() -> None:
    address = show(page_of(open_studio("mini", ["cpu"])))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(address)
        paint_example(page)
        page.screenshot(path=Path(__file__).with_name("web.png"), full_page=True)


def paint_example(page) -> None:
    """Two subjects, the stages that show most, and why."""
    page.locator(".example").nth(1).click()
    page.get_by_label("image 2 is called").fill("car")
    page.locator("#prompt textarea").fill("image 1 on the left and the car on the right on a teal ground")
    page.get_by_role("radio", name="faithful").check()
    page.get_by_role("button", name="Paint", exact=True).click()
    expect(page.locator("#status")).to_contain_text("2 pictures painted.", timeout=MILLISECONDS)
    page.get_by_text("See why").click()
    expect(page.locator("#why table")).to_be_visible()
    page.wait_for_timeout(1000)  # until the fold has opened


if __name__ == "__main__":
    main()

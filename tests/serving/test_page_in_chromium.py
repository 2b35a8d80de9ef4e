"""The page in a real headless Chromium, served by the real service on a real broker."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.events import ItemEvent
from engine.serving.service import wall_ms
from engine.settings import Settings
from tests.conftest import free_port
from tests.serving.browser import MISSING, chromium, console_errors, requested_urls
from tests.serving.live import LiveService, prepare, serving
from tests.serving.shop import ITEMS, Refreshes, shop_list

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (Debian: chromium chromium-driver)"),
]

USER = "u10040"
TOKEN = "correct-horse-battery"
TITLES = {item.item_id: item.title for item in ITEMS}


class Page:
    """What a person sees and does on the page."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, path: str = "/") -> None:
        # A change of the hash alone loads nothing, so the page is left first.
        self.driver.get("about:blank")
        self.driver.get(self.address + path)

    def text(self, selector: str) -> str:
        """Return what is seen of an element; nothing of one that is hidden."""
        script = "const e = document.querySelector(arguments[0]); return e.checkVisibility() ? e.innerText : ''"
        return str(self.driver.execute_script(script, selector))

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.innerText)"
        return list(self.driver.execute_script(script, selector))

    def attribute(self, selector: str, name: str) -> str:
        script = "return document.querySelector(arguments[0]).getAttribute(arguments[1])"
        return str(self.driver.execute_script(script, selector, name))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def listed(self) -> list[str]:
        script = "return [...document.querySelectorAll('#list li')].map((row) => row.dataset.item)"
        return list(self.driver.execute_script(script))

    def has_dialog(self) -> bool:
        return bool(self.driver.execute_script("return document.querySelector('dialog').open"))

    def focused(self) -> str:
        script = "const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.textContent"
        return str(self.driver.execute_script(script))

    def wait(self, is_true: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        try:
            WebDriverWait(self.driver, timeout_s, poll_frequency=0.05).until(lambda _: is_true())
        except TimeoutException:
            raise AssertionError(f"not in time: {what}; the page says: {self.text('body')}") from None


@pytest.fixture(scope="module")
def page(live: LiveService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    live.publish_items(ITEMS)
    live.publish_list(shop_list(USER, window_offset=-1, now_ms=wall_ms(), latency_ms=400))
    live.wait_until(lambda: live.get(f"/v1/users/{USER}/recall").json()["source"] == "personal", what="the list")
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield Page(driver, live.address)


def test_the_live_figures_are_shown_drawn_and_told_in_words(page: Page, live: LiveService):
    with Refreshes(live.settings, per_s=10):
        page.open()
        page.wait(lambda: page.text("#p50").endswith("s") and page.attribute("#chart", "aria-label") > "Lat", "p50")
        page.wait(lambda: page.text("#clicks-rate")[0].isdigit(), "the click rate")

    assert page.text("#state") == "ready"
    assert page.text("#p99").endswith("s")
    assert "p50" in page.attribute("#chart", "aria-label")
    assert page.driver.execute_script("return document.querySelectorAll('#chart path.p50').length") >= 1
    assert int(page.text("#lists-held")) >= 1
    assert page.text("#lists-current").startswith("100 % made by version 0001")
    assert page.text("#model-version") == "0001"
    assert re.match(r"trained \d+ min ago", page.text("#model-age"))
    assert page.texts("#recalls .value") == ["0.1432", "0.1107", "0.0518"]
    assert "2.8 times popular" in page.text("#recall-note")
    assert page.texts("#recent button")


def test_a_user_is_looked_up_and_clicked_for_with_the_keyboard_alone(page: Page, live: LiveService):
    from selenium.webdriver.common.keys import Keys

    page.open()
    page.wait(lambda: page.text("#state") == "ready", "ready")
    page.press(Keys.TAB)
    assert page.focused() == "Skip to the user look-up"
    page.press(Keys.ENTER, Keys.TAB)
    assert page.focused() == "user"
    page.press(USER, Keys.ENTER)
    page.wait(lambda: page.texts("#list .title") != [], "the list")
    shown = page.listed()
    clicked = shown[0]
    before = live.clicks_logged()

    for _ in range(20):
        if page.focused() == f"Click {TITLES[clicked]} as this user":
            break
        page.press(Keys.TAB)
    page.press(Keys.ENTER)
    page.wait(lambda: page.text("#echo").startswith("Logged at partition"), "the acknowledgement")
    # The test stands in for the engine: it answers the click with the next list.
    partition, offset = (int(figure) for figure in re.findall(r"\d+", page.text("#echo"))[:2])
    live.publish_list(shop_list(USER, window_offset=offset + 1, now_ms=wall_ms(), last=clicked), partition=partition)
    page.wait(lambda: page.text("#echo").startswith("The list reflects your click"), "the new list")

    assert live.clicks_logged() == before + 1
    assert page.texts("#window .title")[0] == TITLES[clicked]
    assert clicked not in page.listed()
    assert page.driver.execute_script("return document.querySelector('#list').contains(document.activeElement)")


def test_the_skip_link_leaves_the_user_who_is_shown(page: Page):
    from selenium.webdriver.common.keys import Keys

    page.open(f"/#user={USER}")
    page.wait(lambda: page.texts("#list .title") != [], "the list")

    page.press(Keys.TAB)
    assert page.focused() == "Skip to the user look-up"
    page.press(Keys.ENTER)
    page.wait(lambda: page.driver.current_url.endswith("#lookup"), "the skip")

    assert page.text("#summary")
    assert page.texts("#list .title")


def test_a_list_is_colored_by_interest_and_says_which_in_figures(page: Page):
    page.open(f"/#user={USER}")
    page.wait(lambda: page.texts("#list .title") != [], "the list")

    script = """
      const tone = (row) => getComputedStyle(row).borderLeftColor;
      const number = (row) => row.querySelector('.badge').textContent;
      return [...document.querySelectorAll('#list li')].map((row) => [number(row), tone(row)])
    """
    rows = page.driver.execute_script(script)

    assert {badge for badge, _ in rows} == {"1", "2", "3"}
    assert len({tone for _, tone in rows}) == 3
    assert len({(badge, tone) for badge, tone in rows}) == 3
    assert page.texts("#interests .percent") == ["52 %", "31 %", "17 %"]
    assert page.texts("#interests .forming .title")
    assert "reflects a click made" in page.text("#summary")


def test_the_age_of_a_list_goes_on_while_one_looks(page: Page):
    page.open(f"/#user={USER}")
    page.wait(lambda: page.texts("#list .title") != [], "the list")
    first = page.text("#window .under")

    page.wait(lambda: page.text("#window .under") != first, "an older age", timeout_s=120)


def test_a_user_without_a_list_is_shown_popular_items_and_told_so(page: Page):
    page.open("/#user=nobody%2F%3Cb%3E")
    page.wait(lambda: "popular items" in page.text("#summary"), "the popular items")

    assert page.text("#summary").startswith("nobody/<b> has no personal list")
    assert page.texts("#list .title")


def test_a_title_with_markup_stays_text(page: Page, live: LiveService):
    page.open(f"/#user={USER}")
    page.wait(lambda: page.texts("#list .title") != [], "the list")
    hostile = "<img src=x onerror=\"document.title='owned'\">"
    live.publish_items([ItemEvent(item_id=page.listed()[0], title=hostile)])

    page.wait(lambda: page.texts("#list .title")[0] == hostile, "the new title")

    assert page.driver.title == "MindStream"
    assert page.driver.execute_script("return document.querySelectorAll('#answer img').length") == 0
    live.publish_items(ITEMS)


def test_nothing_is_asked_of_any_other_host_and_the_console_stays_empty(page: Page):
    page.driver.get_log("performance")
    console_errors(page.driver)
    page.open(f"/#user={USER}")
    page.wait(lambda: page.texts("#list .title") != [], "the list")

    asked = [url for url in requested_urls(page.driver) if not url.startswith(("about:", "chrome:", "data:"))]

    assert asked
    assert [url for url in asked if not url.startswith(page.address + "/")] == []
    assert console_errors(page.driver) == []


def test_the_page_asks_for_the_token_once_and_keeps_it_for_the_tab(broker: Settings, tmp_path: Path, page: Page):
    from selenium.webdriver.common.keys import Keys

    changes = {"topic_prefix": "page-token-", "data_dir": tmp_path, "serve_port": free_port()}
    settings = broker.model_copy(update=changes)
    prepare(settings)
    with serving(settings, MINDSTREAM_API_TOKEN=TOKEN) as secured:
        guarded = Page(page.driver, secured.address)
        guarded.open()
        guarded.wait(guarded.has_dialog, "the dialog")
        assert guarded.focused() == "token"
        guarded.press("wrong", Keys.ENTER)
        guarded.wait(lambda: "not accepted" in guarded.text("#token-error"), "the refusal")
        guarded.press(TOKEN, Keys.ENTER)
        guarded.wait(lambda: guarded.text("#state") == "ready", "ready", timeout_s=120)
        guarded.driver.refresh()
        guarded.wait(lambda: guarded.text("#state") == "ready", "ready after a reload")
        assert not guarded.has_dialog()
    guarded.wait(lambda: guarded.text("#state") == "not reachable", "the outage is shown")
    assert "fetch" in guarded.text("#failing")

"""A shop that is served for real, and a buyer with a phone."""

import json
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.e2e.commandline import command, environment, springtide

CHROMIUM = Path("/usr/bin/chromium")
PHONE = {"width": 390, "height": 844}
READY_S = 60.0

SHOP = """
[[zones]]
name = "idc-a"
kind = "idc"
nodes_max = 1
cores_per_node = 2

[counter]
rate_max = 1000

[fleet]
base_replicas = 1

[[sales]]
sale = "tea"
title = "Tea <b>days</b>"
opens_after_s = 0.0
closes_after_s = 3600.0
hold_s = 60.0
buckets = 2

[[sales.skus]]
sku = "green"
title = "Green tea"
price_cny = 12.5
stock = 3
per_buyer_max = 3

[[sales]]
sale = "seats"
title = "Seats"
opens_after_s = 0.0
closes_after_s = 3600.0
hold_s = 60.0
waiting_room = true

[[sales.skus]]
sku = "seat"
title = "A seat"
price_cny = 480.0
stock = 5
"""


class Shop:
    """What `springtide serve` said."""

    def __init__(self, text: str, data: Path) -> None:
        self.links = re.findall(r"http://\S+/s/\S+#token=\S+", text)
        found = re.search(r"back office\s+(http://[\d.:]+)", text)
        assert found is not None
        self.backoffice = found[1]
        self.data = data

    def sale(self, *words: str) -> str:
        """`springtide sale …` with the owner's key."""
        options = ("--url", self.backoffice, "--key-file", str(self.data / "owner.key"), "--json")
        done = springtide("sale", *words, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed (apt-get install chromium)")
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    folder.chmod(0o755)  # started by root, PostgreSQL runs as an ordinary user in it
    (folder / "shop.toml").write_text(SHOP)
    words = ["serve", str(folder / "shop.toml"), "--data", str(folder / "data"), "--port", "0"]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(
            command(*words, "--backoffice-port", "0", "--try-payments"),
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
    try:
        until = time.monotonic() + READY_S
        while "Ctrl-C" not in (text := (folder / "said.txt").read_text()):
            assert process.poll() is None, text
            assert time.monotonic() < until, text
            time.sleep(0.1)
        yield Shop(text, folder / "data")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(folder)
    assert process.returncode == 130


@pytest.fixture(scope="module")
def phone(shop: Shop) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True).new_page()  # type: ignore[arg-type]  # a plain dict is what it takes
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        yield page
        browser.close()
    # Refusals that the page expects show up as failed loads; everything else is a fault of the page.
    assert [fault for fault in faults if "Failed to load resource" not in fault] == []


def test_a_buyer_buys_and_pays_on_his_phone(shop: Shop, phone: Page) -> None:
    phone.goto(shop.links[0])
    phone.wait_for_selector(".sku button:not([disabled])")
    assert "#" not in phone.url, "the token does not stay in the address"
    assert phone.locator("h1").inner_text() == "Tea <b>days</b>", "titles are text, never HTML"
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "nothing has to be scrolled aside"
    phone.locator(".sku select").select_option("2")
    phone.locator(".sku button").click()
    phone.wait_for_selector(".badge.reserved")
    phone.wait_for_selector(".sku .stock:text-is('1 left')")
    phone.locator(".order a").click()
    phone.get_by_role("button", name="Pay").click()
    phone.wait_for_selector("h1:has-text('Paid')")
    phone.goto(shop.links[0])
    phone.wait_for_selector(".badge.paid")
    (order,) = json.loads(shop.sale("orders", "tea"))["orders"]
    assert (order["state"], order["quantity"], order["buyer"]) == ("paid", 2, "ada")


def test_what_is_asked_for_beyond_the_limit_or_the_stock_is_refused_in_words(shop: Shop, phone: Page) -> None:
    phone.goto(shop.links[0])
    phone.wait_for_selector(".sku button:not([disabled])")
    phone.locator(".sku select").select_option("3")
    phone.locator(".sku button").click()
    phone.wait_for_selector(".note.warn:has-text('You already hold as many as one buyer may')")


def test_a_buyer_is_let_in_by_the_waiting_room(shop: Shop, phone: Page) -> None:
    phone.goto(shop.links[1])
    phone.wait_for_selector("#queue:has-text('It is your turn')", timeout=60_000)
    phone.locator(".sku button").click()
    phone.wait_for_selector(".badge.reserved")


def test_without_a_token_the_page_says_where_to_get_one(shop: Shop, phone: Page) -> None:
    context = phone.context.browser.new_context()  # type: ignore[union-attr]  # it was made by a browser
    page = context.new_page()
    page.goto(shop.links[0].partition("#")[0])
    page.wait_for_selector("#problem:has-text('personal token')")
    assert page.locator(".sku button").is_disabled()
    context.close()

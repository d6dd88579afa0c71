"""A real Chromium without a window, for the tests of reports; and what it did: its console, its requests, its time."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--no-default-browser-check"),
    # Chromium's own requests, which are none of the page's.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps"),
    *("--disable-domain-reliability", "--disable-client-side-phishing-detection", "--metrics-recording-only", "--disable-extensions"),
    "--disable-features=OptimizationHints,MediaRouter,Translate,AutofillServerCommunication",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


def require_browser() -> None:
    """Skips where there is no Chromium; fails there in CI, where a skipped check would be none."""
    if CHROMIUM and DRIVER:
        return
    absent = " and ".join(name for name, path in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if not path)
    sentence = f"no {absent} on the path: the reports are not looked at in a browser (apt-get install chromium chromium-driver)"
    if os.environ.get("CI") == "true":
        pytest.fail(sentence)
    pytest.skip(sentence)


@contextmanager
def chromium(width: int = 1280, height: int = 900, dark: bool = False) -> Iterator:
    """A running Chromium whose page is ``width`` wide; it and its profile are gone afterwards."""
    require_browser()
    from selenium import webdriver

    with tempfile.TemporaryDirectory(prefix="report_browser_", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        try:
            # A window is never narrower than 500 pixels; a page can be.
            driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            )
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            driver.get("about:blank")
            driver.get_log("performance")  # of Chromium's own first page
            yield driver
        finally:
            driver.quit()


def requests(driver) -> list[str]:
    """Addresses that the page asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]


def measures(driver, name: str) -> list[float]:
    """Milliseconds of every measure of that name which the page has taken."""
    return driver.execute_script("return performance.getEntriesByName(arguments[0]).map((entry) => entry.duration)", name)

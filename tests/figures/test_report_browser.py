"""Reports in a real Chromium: what they draw, that they answer fast, to a keyboard, on a small page, and ask nobody for anything."""

import statistics
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from imagery2flow.figures.report import write_report
from imagery2flow.run.earth import great_circle_m
from imagery2flow.run.report_config import ReportConfig
from imagery2flow.run.stage import Ledger
from tests.figures import browser
from tests.figures.browser import chromium, measures, requests, require_browser
from tests.figures.runs import city, gravity_pairs, squares, write_run
from tests.figures.test_report import ENDING, HOSTILE, PAIRS

NUM_UNITS, NUM_PAIRS = 2_000, 200_000
FIRST_PAINT_MS, CLICK_MS = 3_000, 200
NUM_CLICKS = 9
ID = "id"
IDS = ["00", "01", "02"]


def make(run) -> str:
    """Address of the report of a run."""
    config = ReportConfig(run_dir=str(run))
    write_report(config, Ledger("report", quiet=True))
    return config.output.as_uri()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Three squares and four pairs, all of known flow."""
    require_browser()
    return make(write_run(tmp_path_factory.mktemp("small"), squares(IDS), PAIRS.fillna({"count": 4.0})))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """2,000 tracts and 200,000 pairs."""
    require_browser()
    units = city(NUM_UNITS)
    pairs = gravity_pairs(units, NUM_PAIRS)
    assert (len(units), len(pairs)) == (NUM_UNITS, NUM_PAIRS)
    return SimpleNamespace(address=make(write_run(tmp_path_factory.mktemp("large"), units, pairs)), units=units, pairs=pairs)


@pytest.fixture(scope="module")
def window():
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(window, small):
    """The small report; afterwards nothing may have been said on the console nor asked of anybody."""
    yield opened(window, small)
    check_quiet(window)


def opened(driver, address):
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    driver.get(address)
    wait(driver, "return performance.getEntriesByName('report:first-map').length === 1")
    return driver


def check_quiet(driver):
    assert driver.get_log("browser") == []
    asked = requests(driver)
    assert asked
    assert all(address.startswith(("file:", "data:")) for address in asked)


def wait(driver, script, *arguments, seconds=20):
    end = time.monotonic() + seconds
    while not driver.execute_script(script, *arguments):
        assert time.monotonic() < end, f"still not: {script}"
        time.sleep(0.02)


def click_unit(driver, unit):
    """A real click into the unit's middle."""
    from selenium.webdriver import ActionChains

    frame = driver.find_element(ID, "map")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
    x, y = driver.execute_script(
        "return [units.x, units.y].map((values, axis) => values[arguments[0]] * map.view.scale + [map.view.x, map.view.y][axis])", unit
    )
    size = driver.execute_script("return [map.width, map.height]")
    ActionChains(driver).move_to_element_with_offset(frame, round(x - size[0] / 2), round(y - size[1] / 2)).click().perform()


def press(driver, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def focused(driver):
    return driver.execute_script("return document.activeElement.id || document.activeElement.tagName")


def choose_option(driver, field, text):
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element(ID, field)).select_by_visible_text(text)


def text(driver, element):
    return driver.find_element(ID, element).text


def rows(driver):
    return driver.execute_script(
        "return [...document.querySelectorAll('#flows tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )


def lines_drawn(driver):
    """Pixels of the lines' canvas that are not empty."""
    return driver.execute_script(
        "const {width, height} = map.overlay; const copy = Object.assign(document.createElement('canvas'), {width, height});"
        "const context = copy.getContext('2d', {willReadFrequently: true}); context.drawImage(map.overlay, 0, 0);"
        "const all = context.getImageData(0, 0, width, height).data;"
        "let count = 0; for (let i = 3; i < all.length; i += 4) count += all[i] > 0; return count"
    )


def test_without_a_browser_these_tests_are_skipped_and_fail_in_ci(monkeypatch):
    monkeypatch.setattr(browser, "CHROMIUM", None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no chromium on the path: .* \(apt-get install chromium chromium-driver\)"):
        require_browser()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no chromium on the path"):
        require_browser()


def test_a_click_shows_the_flows_from_and_to_a_unit(page):
    click_unit(page, 0)
    assert text(page, "chosen") == "Unit 00"
    assert text(page, "status") == "Unit 00 is chosen: 1 flows out of it, 1 into it, and the flow within it (observed)."
    assert rows(page) == [
        ["within", "00", "0.0", "90", "80.0", "90.0", "\u221210.0", "0.0"],
        ["out", "01", "1.0", "10", "12.0", "5.0", "2.0", "\u22125.0"],
        ["in", "02", "2.0", "4", "5.0", "6.0", "1.0", "2.0"],
    ]
    assert "Outflow, observed (commuters)\n100" in text(page, "facts")
    drawn = lines_drawn(page)
    click_unit(page, 1)
    assert [row[:2] for row in rows(page)] == [["out", "02"], ["in", "00"]]
    assert lines_drawn(page) not in (0, drawn)


def test_a_click_beside_every_unit_chooses_none(page):
    click_unit(page, 0)
    page.execute_script("map.zoom(0.5)")
    from selenium.webdriver import ActionChains

    ActionChains(page).move_to_element_with_offset(page.find_element(ID, "map"), 0, 150).click().perform()
    assert not page.find_element(ID, "details").is_displayed()
    assert text(page, "status").startswith("No unit is chosen: lines are all 3 flows between different units")


def test_lines_switch_between_observed_predicted_and_difference(page):
    modes = [option.text for option in page.find_elements("css selector", "#mode option")]
    assert modes == ["observed", "bilinear", "LightGBM", "bilinear minus observed", "LightGBM minus observed"]
    click_unit(page, 0)
    for mode in modes:
        choose_option(page, "mode", mode)
        assert text(page, "line-title") == f"Lines: {mode} (commuters of a pair)"
        assert text(page, "status").endswith(f"({mode}).")
    colours = page.execute_script("return map.lines.map(({colour, dashed}) => [colour, dashed])")
    scale = page.execute_script("return lineColours()")  # from blue to orange
    places = {dashed: scale.index(colour) - len(scale) // 2 for colour, dashed in colours}
    assert places[False] < 0 < places[True]  # 5 too few from the unit, 2 too many to it
    assert "Blue: too few are predicted; orange: too many." in text(page, "line-hint")
    assert [row[1] for row in rows(page)] == ["01", "02", "00"]  # by the size of the difference


def test_units_are_coloured_by_any_column_with_a_legend(page):
    before = page.execute_script("return map.colours")
    choose_option(page, "column", "Inflow, LightGBM minus observed (commuters)")
    colours = page.execute_script("return map.colours")
    assert colours != before
    assert len(set(colours)) == 3
    assert text(page, "unit-title") == "Units: Inflow, LightGBM minus observed (commuters)"
    assert "and more" in text(page, "unit-classes")


def test_filters_by_volume_and_distance(page):
    click_unit(page, 0)
    volume, far = page.find_element(ID, "volume-low"), page.find_element(ID, "distance-high")
    volume.send_keys("5")
    assert [row[1] for row in rows(page)] == ["00", "01"]
    far.send_keys("0.5")
    assert [row[1] for row in rows(page)] == ["00"]
    page.find_element(ID, "reset").click()
    assert [row[1] for row in rows(page)] == ["00", "01", "02"]
    page.find_element(ID, "volume-high").send_keys("10")
    assert [row[1] for row in rows(page)] == ["01", "02"]
    page.find_element(ID, "distance-low").send_keys("1.5")
    assert [row[1] for row in rows(page)] == ["02"]
    page.find_element(ID, "reset").click()
    page.find_element("css selector", "input[value=out]").click()
    assert [row[0] for row in rows(page)] == ["within", "out"]
    page.find_element("css selector", "input[value=in]").click()
    assert [row[0] for row in rows(page)] == ["within", "in"]


def test_the_table_is_sorted_by_its_heads_and_leads_to_other_units(page):
    click_unit(page, 0)
    page.find_element("css selector", "#flows th:nth-child(3) button").click()
    assert [row[2] for row in rows(page)] == ["2.0", "1.0", "0.0"]
    assert page.execute_script("return document.querySelector('#flows th:nth-child(3)').getAttribute('aria-sort')") == "descending"
    page.find_element("css selector", "#flows th:nth-child(3) button").click()
    assert [row[2] for row in rows(page)] == ["0.0", "1.0", "2.0"]
    page.find_element("xpath", "//table[@id='flows']//td/button[text()='02']").click()
    assert text(page, "chosen") == "Unit 02"
    assert focused(page) == "chosen"


def test_everything_is_done_with_the_keyboard(page):
    from selenium.webdriver import Keys

    press(page, Keys.TAB)
    assert page.execute_script("return document.activeElement.className") == "skip"
    press(page, Keys.ENTER)
    assert focused(page) == "search"
    press(page, "0", Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert page.find_element(ID, "search").get_attribute("aria-activedescendant") == "option-1"
    assert page.find_element(ID, "option-1").get_attribute("aria-selected") == "true"
    assert page.find_element(ID, "matches").get_attribute("textContent") == "3 units match"
    press(page, Keys.ENTER)
    assert (text(page, "chosen"), focused(page)) == ("Unit 01", "search")
    assert page.find_element(ID, "search").get_attribute("aria-expanded") == "false"
    visited = []
    while "clear" not in visited:
        press(page, Keys.TAB)
        visited.append(focused(page))
        assert len(visited) < 40, f"the focus does not come on: {visited}"
        outline = page.execute_script(
            "const style = getComputedStyle(document.activeElement); return [style.outlineStyle, style.outlineWidth]"
        )
        assert outline[0] != "none", f"the focus of {visited[-1]} is not to be seen"
        assert outline[1] != "0px"
        if visited[-1] == "map":
            view = page.execute_script("return {...map.view}")
            press(page, Keys.ARROW_LEFT, "+")
            assert page.execute_script("return map.view.x") != view["x"]
            assert page.execute_script("return map.view.scale") == pytest.approx(1.4 * view["scale"])
            press(page, "0", Keys.ENTER)  # the unit in the middle
            assert text(page, "chosen") == "Unit 01"
    order = [
        "mode",
        "column",
        "volume-low",
        "volume-high",
        "distance-low",
        "distance-high",
        "reset",
        "map",
        "zoom-in",
        "zoom-out",
        "zoom-all",
    ]
    assert [name for name in visited if name in order] == order
    press(page, Keys.TAB, Keys.TAB)  # out of the frame of the table into its first head
    assert page.execute_script("return document.activeElement.closest('th') !== null")


def test_a_search_without_a_match_says_so_and_chooses_nothing(page):
    field = page.find_element(ID, "search")
    field.send_keys("99")
    assert text(page, "matches") == "0 units match"
    assert not page.find_element(ID, "options").is_displayed()
    field.send_keys("\n")
    assert not page.find_element(ID, "details").is_displayed()


def test_controls_have_names_and_changes_are_announced(page):
    unnamed = page.execute_script(
        "return [...document.querySelectorAll('button, input, select, [tabindex=\"0\"]')].filter((one) => !("
        "one.ariaLabel || one.textContent.trim() || one.labels?.length || one.getAttribute('aria-labelledby'))).map((one) => one.outerHTML)"
    )
    assert unnamed == []
    assert page.find_element(ID, "status").get_attribute("aria-live") == "polite"
    assert page.find_element(ID, "map").get_attribute("aria-label").startswith("Map of the units and flows. Arrow keys move it")


def test_the_map_is_dragged_and_zoomed(page):
    from selenium.webdriver import ActionChains

    frame = page.find_element(ID, "map")
    before = page.execute_script("return {...map.view}")
    ActionChains(page).click_and_hold(frame).move_by_offset(40, 25).release().perform()
    after = page.execute_script("return {...map.view}")
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((40, 25))
    assert page.execute_script("return state.chosen") == -1  # a drag is no click
    page.find_element(ID, "zoom-in").click()
    assert page.execute_script("return map.view.scale") == pytest.approx(1.6 * before["scale"])
    page.find_element(ID, "zoom-all").click()
    assert page.execute_script("return {...map.view}") == pytest.approx(before)


@pytest.mark.parametrize("dark", [False, True])
def test_a_page_of_360_pixels_needs_no_scrolling_to_the_side(small, large, dark, tmp_path):
    with chromium(360, 740, dark) as driver:
        for address in (small, large.address):
            opened(driver, address)
            search = driver.find_element(ID, "search")
            search.send_keys(driver.execute_script("return units.ids[1]"), "\n")
            assert text(driver, "chosen").startswith("Unit ")
            assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
            assert driver.execute_script("return map.width") > 300
            background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert background == ("rgb(22, 24, 27)" if dark else "rgb(255, 255, 255)")
            driver.save_screenshot(str(tmp_path / "page.png"))
            assert (tmp_path / "page.png").stat().st_size > 10_000
        check_quiet(driver)


def test_hostile_names_run_nothing(window, tmp_path):
    units = squares(["00", HOSTILE, "02"]).assign(**{ENDING: [1, 2, 3], "word": ENDING})
    opened(window, make(write_run(tmp_path, units, PAIRS.replace("01", HOSTILE), region=[ENDING], log=ENDING)))
    choose_option(window, "column", ENDING)
    window.find_element(ID, "search").send_keys("<img", "\n")
    assert text(window, "chosen") == f"Unit {HOSTILE}"
    assert ENDING in text(window, "facts")
    assert window.execute_script("return [document.images.length, document.scripts.length]") == [0, 2]
    check_quiet(window)


def test_a_city_without_known_flows_shows_predictions(window, tmp_path):
    pairs = PAIRS.assign(count=np.nan).drop(columns="split").assign(scored=False)
    opened(window, make(write_run(tmp_path, squares(IDS), pairs, "test_ODPrediction")))
    assert [option.text for option in window.find_elements("css selector", "#mode option")] == ["bilinear", "LightGBM"]
    click_unit(window, 0)
    assert rows(window) == [
        ["within", "00", "0.0", "80.0", "90.0"],
        ["out", "01", "1.0", "12.0", "5.0"],
        ["in", "02", "2.0", "5.0", "6.0"],
    ]
    check_quiet(window)


def test_unknown_flows_are_shown_as_such(window, tmp_path):
    opened(window, make(write_run(tmp_path, squares(IDS), PAIRS)))
    choose_option(window, "mode", "bilinear")
    click_unit(window, 2)
    assert rows(window)[1] == ["out", "00", "2.0", "unknown", "5.0", "6.0", "unknown", "unknown"]
    check_quiet(window)


def test_the_page_may_not_ask_for_anything(window, small):
    opened(window, small)
    refused = window.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('answered'), (error) => done(error.name))"
    )
    assert refused == "TypeError"
    assert any("Content Security Policy" in entry["message"] for entry in window.get_log("browser"))
    assert not [address for address in requests(window) if address.startswith("http")]


def test_flows_of_a_unit_and_the_largest_of_all_are_those_of_the_table(window, large):
    opened(window, large.address)
    place = large.units.set_index("geocode").centroid.to_crs(4326)
    for unit in (3, 700, 1_500):
        geocode = large.units.geocode[unit]
        found = window.execute_script(
            "choose(arguments[0]); return state.rows.map(({pair}) => ["
            "units.ids[flows.origin[pair]], units.ids[flows.destination[pair]], modes[0].values[pair], modes[2].values[pair], flows.distanceKm[pair]])",
            unit,
        )
        own = large.pairs[(large.pairs.h_geocode == geocode) | (large.pairs.w_geocode == geocode)]
        told = own.set_index(["h_geocode", "w_geocode"])[["count", "lightgbm"]]
        shown = pd.DataFrame(found, columns=["h_geocode", "w_geocode", "count", "lightgbm", "km"])
        ends = [place[shown[column]] for column in ("h_geocode", "w_geocode")]
        km = great_circle_m(ends[0].x.to_numpy(), ends[0].y.to_numpy(), ends[1].x.to_numpy(), ends[1].y.to_numpy()) / 1_000
        np.testing.assert_allclose(shown.km, km, rtol=1e-5, atol=1e-5)
        shown = shown.set_index(["h_geocode", "w_geocode"])[["count", "lightgbm"]]
        pd.testing.assert_frame_equal(shown.sort_index(), told.sort_index(), check_dtype=False, rtol=1e-6)
    volumes = window.execute_script("choose(-1); return state.rows.map(({pair}) => modes[0].values[pair])")
    between = large.pairs[large.pairs.h_geocode != large.pairs.w_geocode]
    assert sorted(volumes) == sorted(between["count"].nlargest(len(volumes)))
    check_quiet(window)


def test_200_000_flows_are_painted_and_answer_at_once(window, large):
    """Times of a shared machine scatter: the first paint of three, the clicks' median."""
    paints, maps = [], []
    for _ in range(3):
        opened(window, large.address)
        paints.append(window.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        maps += measures(window, "report:first-map")
    units = window.execute_script(
        "return [...units.x].map((_, unit) => unit).filter((unit) => flows.start[unit + 1] - flows.start[unit] > 50)"
    )
    for number, unit in enumerate(units[:: len(units) // NUM_CLICKS][:NUM_CLICKS]):
        click_unit(window, unit)
        wait(window, "return performance.getEntriesByName('report:click-to-lines').length === arguments[0]", number + 1)
        assert window.execute_script("return state.chosen") == unit
    clicks = measures(window, "report:click-to-lines")
    told = pd.Series(
        {"first paint": statistics.median(paints), "first map": statistics.median(maps), "click to lines": statistics.median(clicks)}
    )
    print(f"\n{NUM_UNITS:,} units, {NUM_PAIRS:,} flows, median ms:", told.round().to_dict(), f"slowest click {max(clicks):.0f}")
    assert told["first paint"] < FIRST_PAINT_MS
    assert told["first map"] < FIRST_PAINT_MS
    assert told["click to lines"] < CLICK_MS
    assert lines_drawn(window) > 0
    check_quiet(window)

"""Every figure as SVG and PDF: text stays text, equal figures give equal files, and nothing is cut off or written over."""

import re
import zlib
from itertools import combinations

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from matplotlib.backends.backend_agg import FigureCanvasAgg

from imagery2flow.figures import breakdowns, maps, patches, scores, unit_maps
from imagery2flow.run.files import save_figure

NAMES = ("bilinear", "LightGBM, untrained encoder", "gravity", "constant")
# As far from 0 as in any UTM zone, where matplotlib writes 1e6 beside an axis.
CORNERS = [(5e5 + n // 3 * 1e3, 45e5 + n % 3 * 1e3) for n in range(12)]
UNITS = gpd.GeoSeries([shapely.box(x, y, x + 1e3, y + 1e3) for x, y in CORNERS], index=[f"{n:02}" for n in range(12)], crs=32618)


def groups(*names):
    return {name: pd.DataFrame({"group": names, "num": 120_559, "mean": 0.8, "std": 0.3, "pooled": 0.7}) for name in NAMES}


def predictions():
    table = pd.DataFrame([(h, w) for h in UNITS.index for w in UNITS.index], columns=["h_geocode", "w_geocode"])
    counts = np.random.default_rng(0).integers(1, 90_000, len(table)).astype(float)
    return {name: table.assign(count=counts, prediction=counts[::-1]) for name in NAMES}


def origins():
    return {
        name: pd.DataFrame({"geocode": UNITS.index[:9], "observed": 90.0, "predicted": range(9), "cpc": np.linspace(0, 1, 9)})
        for name in NAMES
    }


def calibrated():
    return pd.DataFrame({"bin": range(1, 11), "num_pairs": 999, "mean_predicted": np.arange(10.0), "mean_observed": np.arange(10.0) ** 2})


def trials():
    rows = [(u, name, n / 7, 120_559) for u in ("full", "gt10", "positive") for name in NAMES for n in range(5)]
    return pd.DataFrame(rows, columns=["universe", "predictor", "cpc", "num_pairs"])


VECTORS = np.random.default_rng(0).normal(size=(12, 8))
PATCHES = list(np.random.default_rng(0).integers(0, 9, (12, 3, 6, 4)))
DECILES = [str(n) for n in range(1, 11)]
BINS = ["0-20", "20-40", "40-60", "60-80", "80-100", "above 100"]
COVER = ["open space", "built up", "forest", "cultivated", "wetlands", "barren", "shrub and scrub", "grassland", "other"]
# How each figure is drawn, and a text in it.
FIGURES = {
    "job_rank_size": (
        lambda: scores.job_rank_size({f"M{n}": pd.DataFrame({"w_geocode": list("abc"), "count": [n, 2, 3]}) for n in range(10)}),
        "M9: slope",
    ),
    "cpc_by_population": (lambda: breakdowns.cpc_by_population(groups(*DECILES)), "n = 120,559"),
    "cpc_by_distance": (lambda: breakdowns.cpc_by_distance(groups(*BINS)), "above 100"),
    "eight predictors": (
        lambda: breakdowns.cpc_by_distance({f"{n} {name}, on shuffled images": t for name, t in groups(*BINS).items() for n in "12"}),
        "2 gravity",
    ),
    "cpc_by_intensity": (lambda: breakdowns.cpc_by_intensity(groups(*BINS), pooled=True), "pooled CPC of the bin"),
    "cpc_by_group": (lambda: breakdowns.cpc_by_group(groups(*COVER)), "cultivated"),
    "calibration": (lambda: scores.calibration(dict.fromkeys(NAMES, calibrated())), "gravity (n = 9,990 pairs; 1 of 10 bins at 0)"),
    "controls_dots": (lambda: scores.controls_dots(trials()), "pairs above 10 commuters"),
    "origin_error_map": (lambda: unit_maps.origin_error_map(origins(), UNITS), "n = 9 of 12 units"),
    "flow_maps": (lambda: maps.flow_maps(predictions(), UNITS), "n = 144 pairs"),
    "nearest_patches": (lambda: patches.nearest_patches(list(UNITS.index), PATCHES, VECTORS, ["03", "07"]), "cosine"),
    "embedding_rgb_map": (lambda: unit_maps.embedding_rgb_map(pd.DataFrame(VECTORS[:9], index=UNITS.index[:9]), UNITS), "red: component 1"),
}


@pytest.fixture(params=FIGURES)
def drawn(request):
    """A figure and a text in it."""
    draw, text = FIGURES[request.param]
    return draw(), text


def test_text_stays_text(drawn, tmp_path):
    figure, text = drawn
    for suffix in ("svg", "pdf"):
        save_figure(tmp_path / f"a.{suffix}", figure)
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text in svg and "<text" in svg
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf or b"/TrueType" in pdf  # not Type 3, which publishers refuse
    assert b"/Type3" not in pdf
    streams = (part.split(b"endstream")[0] for part in re.split(rb"stream\r?\n", pdf)[1::1])
    assert any(b"Tj" in page or b"TJ" in page for page in map(inflate, streams))


def inflate(stream):
    """What a compressed part of a PDF holds; nothing if it is not compressed."""
    try:
        return zlib.decompressobj().decompress(stream)
    except zlib.error:
        return b""


def test_equal_tables_give_equal_files(tmp_path):
    for draw, _ in FIGURES.values():
        for name in ("a.svg", "b.svg"):
            save_figure(tmp_path / name, draw())
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def texts_of(figure):
    """Every text that is drawn, with its box in pixels."""
    FigureCanvasAgg(figure).draw()
    unseen = {text for axis in figure.axes for dimension in (axis.xaxis, axis.yaxis) for text in unseen_labels(dimension, axis.axison)}
    found = [text for text in figure.findobj(match=is_text) if text.get_visible() and text.get_text().strip() and text not in unseen]
    return [(text.get_text(), shapely.box(*text.get_window_extent().extents)) for text in found]


def unseen_labels(dimension, axis_on):
    """Labels that are kept but not drawn: of ticks beyond the limits, and everything where the axis is off."""
    if not axis_on:
        return dimension.findobj(match=is_text)
    low, high = sorted(dimension.get_view_interval())
    ticks = [tick for tick in (*dimension.majorTicks, *dimension.minorTicks) if not low <= tick.get_loc() <= high]
    return [text for tick in ticks for text in (tick.label1, tick.label2)]


def is_text(artist):
    return hasattr(artist, "get_text") and hasattr(artist, "get_fontsize")


def test_no_text_is_cut_off_written_over_or_too_small_to_read(drawn):
    figure, text = drawn
    found = texts_of(figure)
    assert any(text in said for said, _ in found)
    page = shapely.box(*figure.bbox.extents).buffer(1)
    assert [said for said, box in found if not page.contains(box)] == []
    assert [(one, other) for (one, box), (other, beside) in combinations(found, 2) if box.intersection(beside).area > 4] == []
    assert min(artist.get_fontsize() for artist in figure.findobj(match=is_text) if artist.get_text().strip()) >= 5

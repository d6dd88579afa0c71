import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from imagery2flow.imagery.checks import look_at_coverage, look_at_scene, overlaps, sample_scene, sample_windows
from imagery2flow.imagery.scene import open_scene
from imagery2flow.run.inspection import Inspection
from imagery2flow.run.stage import Ledger

LEFT, TOP, PIXEL_M = 500_000.0, 4_500_000.0, 10.0


@pytest.fixture
def inspection():
    return Inspection(Ledger("test", quiet=True))


def squares(**boxes):
    """Units by id, each from (column, row) to (column, row) of the scene."""
    shapes = [shapely.box(LEFT + PIXEL_M * a, TOP - PIXEL_M * d, LEFT + PIXEL_M * c, TOP - PIXEL_M * b) for a, b, c, d in boxes.values()]
    return gpd.GeoDataFrame(geometry=shapes, index=list(boxes), crs="EPSG:32618")


def write_scene(path, values, **profile):
    """Writes [num_bands, height, width]."""
    count, height, width = values.shape
    settings = {"driver": "GTiff", "width": width, "height": height, "count": count, "dtype": values.dtype, "crs": "EPSG:32618"}
    with rasterio.open(path, "w", **{**settings, "transform": Affine(PIXEL_M, 0, LEFT, 0, -PIXEL_M, TOP), **profile}) as scene:
        scene.write(values)
    return open_scene(str(path))


def noise(num_bands, height, width, seed=0):
    return np.random.default_rng(seed).integers(1, 200, (num_bands, height, width)).astype(np.uint8)


def said(inspection, level):
    return [finding.sentence for finding in inspection.findings if finding.level == level]


def test_units_that_share_a_border_or_a_sliver_do_not_overlap_and_others_do():
    units = squares(a=(0, 0, 10, 10), b=(10, 0, 20, 10), c=(19.95, 0, 30, 10), d=(2, 2, 4, 4), e=(25, 5, 40, 15))
    assert overlaps(units) == ["a+d", "c+e"]  # d lies within a; b and c share half a hundredth


def test_overlaps_are_those_that_a_loop_over_all_pairs_finds():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 30, (25, 2))
    units = squares(
        **{f"u{n:02d}": (x, y, x + w, y + h) for n, ((x, y), (w, h)) in enumerate(zip(corners, random.uniform(1, 8, (25, 2)), strict=True))}
    )
    metric = units.to_crs(units.estimate_utm_crs()).geometry
    expected = [
        f"{a}+{b}"
        for i, a in enumerate(units.index)
        for b in units.index[i + 1 :]
        if metric[a].intersection(metric[b]).area > 0.01 * min(metric[a].area, metric[b].area)
    ]
    assert 0 < len(expected) < 25 * 24 / 2
    assert overlaps(units) == expected


@pytest.mark.parametrize("blocks", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"blockysize": 1}])
def test_the_windows_lie_in_the_scene_and_reach_all_its_corners(tmp_path, blocks):
    scene = write_scene(tmp_path / "s.tif", noise(1, 50, 70), **blocks)
    windows = sample_windows(scene)
    seen = np.zeros((50, 70), dtype=bool)
    for window in windows:
        assert min(window.col_off, window.row_off) >= 0
        assert window.col_off + window.width <= 70 and window.row_off + window.height <= 50
        seen[window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width] = True
    assert seen[0, 0] and seen[0, -1] and seen[-1, 0] and seen[-1, -1]


def test_a_sample_counts_valid_and_black_pixels_and_names_constant_bands(tmp_path):
    values = noise(3, 20, 30)
    values[:, :, :6] = 0
    values[1, :, 6:] = 7
    scene = write_scene(tmp_path / "s.tif", values)
    sample = sample_scene(scene)
    assert (sample.num_pixels, sample.valid, sample.constant) == (600, 1.0, ())
    assert sample.zero == pytest.approx(0.2)
    sample = sample_scene(write_scene(tmp_path / "marked.tif", values, nodata=0))
    assert (sample.valid, sample.zero, sample.constant) == (pytest.approx(0.8), 0.0, ("band2",))


@pytest.mark.parametrize(
    ("change", "profile", "sentence"),
    [
        (lambda v: np.zeros_like(v), {"nodata": 0}, "no pixel that was read is valid; check its nodata value"),
        (
            lambda v: np.where(np.arange(30) < 6, 0, v),
            {},
            "20% of the pixels that were read are 0 in every band, and the scene declares no nodata",
        ),
        (lambda v: np.full_like(v, 9), {}, "bands band1, band2 have one value"),
    ],
)
def test_what_a_scene_may_surprise_with_is_a_warning(tmp_path, inspection, change, profile, sentence):
    look_at_scene(write_scene(tmp_path / "s.tif", change(noise(2, 20, 30)).astype(np.uint8), **profile), inspection)
    (warning,) = said(inspection, "warning")
    assert sentence in warning
    assert said(inspection, "fault") == []
    assert "30 x 20 px of 10 m, band1, band2 (uint8), EPSG:32618" in said(inspection, "ok")[0]


def test_a_scene_that_lacks_its_end_is_a_fault(tmp_path, inspection):
    path = tmp_path / "s.tif"
    write_scene(path, noise(1, 200, 200), blockysize=10)
    path.write_bytes(path.read_bytes()[:30_000])
    look_at_scene(open_scene(str(path)), inspection)
    assert "may be truncated: copy it again" in said(inspection, "fault")[0]


def test_units_are_counted_by_how_far_a_scene_covers_them(tmp_path, inspection):
    scenes = [
        write_scene(tmp_path / "s.tif", noise(1, 50, 50)),
        write_scene(tmp_path / "t.tif", noise(1, 50, 50), transform=Affine(PIXEL_M, 0, LEFT + 400, 0, -PIXEL_M, TOP)),
    ]
    units = squares(
        whole=(5, 5, 10, 20),
        edge=(0, 0, 50, 50),
        of_the_other=(60, 10, 70, 20),
        across=(30, 30, 60, 40),
        partly=(80, 40, 95, 45),
        outside=(200, 0, 210, 9),
    )
    pixels = look_at_coverage(units, scenes, "units.gpkg", None, inspection)
    assert said(inspection, "ok") == ["3 units lie wholly on it, 2 partly, 1 not at all"]
    gone, partly = said(inspection, "warning")
    assert "1 units get no patch (outside)" in gone
    assert "2 units lie partly on it (across, partly)" in partly
    assert pixels == 5 * 15 + 50 * 50 + 10 * 10 + 30 * 10 + 15 * 5
    assert look_at_coverage(squares(far=(900, 0, 910, 10)), scenes, "units.gpkg", None, inspection) == 0
    assert "no unit of units.gpkg lies on a scene" in said(inspection, "fault")[0]

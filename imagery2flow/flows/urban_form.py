"""Urban form: the shape of a region's outline, how densely people live in it, how close to one centre the jobs lie.

All geometry is in a Lambert azimuthal equal-area projection centred on the region, in metres on WGS 84, never in degrees: areas are
exact, lengths .01 % off 150 km from the centre. The outline is the union of the units, whose gaps of up to a metre, left by digitising, are
closed; water inside units belongs to it.

BCSI = sum_i |100 r_i / sum r - 100 / n|
    Boyce-Clark shape index [1] from n = 36 rays at equal angles, the first to the east: 0 is a disc, 200 - 200 / n the most. r_i is the
    distance from the centre to the farthest crossing of the ray with the outline, so that neither holes nor gaps between parts count; a
    ray that meets nothing, where the centre lies outside, has r = 0.
Polsby-Popper = 4 pi A / P^2
    0..1, 1 is a disc [2]. P has the edges of holes in it. It falls with the detail of a digitised coast.
moment of inertia = A^2 / (2 pi I)
    0..1, 1 is a disc [3]. I is the second moment of area about the centroid, which hardly feels the detail of a coast.
population density = residents / A, per km2
    over the whole area of the units, water included.
population-weighted density = sum p_i^2 / a_i / sum p_i, per km2
    the density of its own unit that the average resident sees [4]; it depends on the size of units.
job centre
    the centroid of the unit with the most jobs per km2, the first by id of equals.
jobs within 5 km
    share of jobs in units whose centroid lies within 5 km of the job centre, 0..1, after [5], where it is 3 miles.
centralisation = sum_i X_(i-1) A_i - X_i A_(i-1)
    absolute centralisation index [6]: units by their distance from the job centre, X the share of jobs and A that of area so far. Near 1:
    all jobs at the centre; 0: as even as the area; below 0: at the edge. Units at one distance count as one.

[1] Boyce and Clark 1964, The concept of shape in geography, Geographical Review 54:561-572
[2] Polsby and Popper 1991, The third criterion, Yale Law and Policy Review 9:301-353
[3] Li, Goodchild and Church 2013, doi 10.1080/13658816.2012.752093
[4] Craig 1985, Averaging population density, Demography 22:405-412
[5] Glaeser and Kahn 2001, Decentralized employment and the transformation of the American city, doi 10.3386/w8117
[6] Massey and Denton 1988, The dimensions of residential segregation, Social Forces 67:281-315
"""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from imagery2flow.flows.graph import TOUCHING_M
from imagery2flow.run.earth import SQUARE_METRES_PER_KM2

NUM_RAYS = 36
CENTRE_RADIUS_M = 5_000.0


def equal_area(units: gpd.GeoSeries) -> gpd.GeoSeries:
    """The same units in metres, in an equal-area projection whose centre is the middle of theirs."""
    degrees = np.radians(shapely.get_coordinates(units.representative_point().to_crs(4326).to_numpy()))  # [num_units, 2]
    longitude, latitude = degrees.T
    # The mean of directions from the Earth's centre, unlike that of degrees, is right on both sides of the antimeridian.
    east, north, up = (np.cos(latitude) * np.cos(longitude)).mean(), (np.cos(latitude) * np.sin(longitude)).mean(), np.sin(latitude).mean()
    centre = np.degrees([np.arctan2(north, east), np.arctan2(up, np.hypot(east, north))])
    return units.to_crs(f"+proj=laea +lon_0={centre[0]:.6f} +lat_0={centre[1]:.6f} +datum=WGS84 +units=m")


def dissolve(units: gpd.GeoSeries) -> BaseGeometry:
    """The outline of units in metres: their union without the gaps that digitising left between them."""
    half = TOUCHING_M / 2
    return shapely.buffer(shapely.buffer(units.union_all(), half), -half)


def boyce_clark(outline: BaseGeometry, centre: shapely.Point | None = None, num_rays: int = NUM_RAYS) -> float:
    """BCSI, 0 to 200 - 200 / num_rays; 0 is a disc.

    Args:
        outline: Polygon or multipolygon in metres.
        centre: Where the rays begin; default the centroid of the outline. It may lie in a hole or outside.
        num_rays: Rays at equal angles, anticlockwise from the east.

    Returns:
        NaN where no ray meets the outline.
    """
    length = ray_lengths(outline, outline.centroid if centre is None else centre, num_rays)
    if length.sum() == 0:
        return np.nan
    return float(np.abs(100 * length / length.sum() - 100 / num_rays).sum())


def ray_lengths(outline: BaseGeometry, centre: shapely.Point, num_rays: int) -> np.ndarray:
    """Distance from the centre to the farthest crossing of each ray with the outline, 0 without one: metres [num_rays]."""
    start = np.array([centre.x, centre.y])
    reach = 2 * np.hypot(*(shapely.get_coordinates(outline) - start).T).max()
    angle = 2 * np.pi * np.arange(num_rays) / num_rays
    ends = start + reach * np.stack([np.cos(angle), np.sin(angle)], axis=1)  # [num_rays, 2]
    rays = shapely.linestrings(np.stack([np.broadcast_to(start, ends.shape), ends], axis=1))
    crossings, ray = shapely.get_coordinates(shapely.intersection(rays, outline), return_index=True)
    length = np.zeros(num_rays)
    np.maximum.at(length, ray, np.hypot(*(crossings - start).T))
    return length


def polsby_popper(outline: BaseGeometry) -> float:
    """4 pi A / P^2, 0..1; 1 is a disc."""
    return float(4 * np.pi * outline.area / outline.length**2)


def moment_compactness(outline: BaseGeometry) -> float:
    """A^2 / (2 pi I) with the second moment of area I about the centroid, 0..1; 1 is a disc."""
    centroid = np.array([outline.centroid.x, outline.centroid.y])
    moment = 0.0
    for part in shapely.get_parts(outline):
        moment += ring_moment(part.exterior, centroid) - sum(ring_moment(hole, centroid) for hole in part.interiors)
    return float(outline.area**2 / (2 * np.pi * moment))


def ring_moment(ring: shapely.LinearRing, about: np.ndarray) -> float:
    """Second polar moment of the area within a ring about a point [x, y], in m4, by Green's theorem; its direction does not matter."""
    place = shapely.get_coordinates(ring) - about  # [num_corners + 1, 2]
    here, there = place[:-1], place[1:]
    twice_area = here[:, 0] * there[:, 1] - there[:, 0] * here[:, 1]
    return float(abs((twice_area * (here**2 + here * there + there**2).sum(axis=1)).sum()) / 12)


def population_density(residents: np.ndarray, area_km2: np.ndarray) -> tuple[float, float]:
    """Residents per km2 of the region, and as the average resident sees it.

    Args:
        residents: Of each unit, NaN where unknown: [num_units].
        area_km2: Of each unit, above 0: [num_units].

    Returns:
        The first over the area of the units whose residents are known. NaN where none is, and the second where nobody lives.
    """
    known = ~np.isnan(residents)
    people, area = residents[known], area_km2[known]
    if not len(people):
        return np.nan, np.nan
    total = people.sum()
    return float(total / area.sum()), float((people**2 / area).sum() / total) if total > 0 else np.nan


def densest(jobs: np.ndarray, area_km2: np.ndarray) -> int:
    """Position of the unit with the most jobs per km2, the first of equals."""
    return int(np.argmax(jobs / area_km2))


def share_within(jobs: np.ndarray, distance_m: np.ndarray, radius_m: float = CENTRE_RADIUS_M) -> float:
    """Share of jobs within a distance of the centre, the distance itself included, 0..1; NaN without jobs.

    Args:
        jobs: [num_units].
        distance_m: Of each unit from the centre: [num_units].
        radius_m: The distance.
    """
    return float(jobs[distance_m <= radius_m].sum() / jobs.sum()) if jobs.sum() > 0 else np.nan


def centralisation(jobs: np.ndarray, area_km2: np.ndarray, distance_m: np.ndarray) -> float:
    """Absolute centralisation index of jobs, -1..1; NaN without jobs.

    Args:
        jobs: [num_units].
        area_km2: [num_units].
        distance_m: Of each unit from the centre; units at one distance count as one: [num_units].
    """
    if jobs.sum() <= 0:
        return np.nan
    ring = np.unique(distance_m, return_inverse=True)[1]
    x, a = (np.cumsum(np.bincount(ring, values) / values.sum()) for values in (jobs, area_km2))  # [num_rings] each
    return float((x[:-1] * a[1:]).sum() - (x[1:] * a[:-1]).sum())


def unit_areas_km2(units: gpd.GeoSeries) -> np.ndarray:
    """Area of each unit of an equal-area projection: [num_units]."""
    return np.asarray(units.area.to_numpy() / SQUARE_METRES_PER_KM2)

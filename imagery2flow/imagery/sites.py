"""Scenes of many cities: a folder tree ``<city>/<site>/<image>``, and which of its tiles are for training, validation and test.

Tiles of one scene overlap and resemble each other: no tile may cross from one split into another, and a test on other sites than those of the training says
more than one on other tiles. The published split (``last_site``) keeps the last site of each city, by name, from the training; each of its images is halved
before it is tiled, the right half for validation and the left for test. Those two are neighbours, so that a score of validation says little of new places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from imagery2flow.imagery.scene import IMAGE_SUFFIXES, Scene
from imagery2flow.run.errors import InputError, MissingInputError, shown
from imagery2flow.run.stage import Ledger

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
SplitRule = Literal["none", "last_site", "sites", "scenes"]


@dataclass(frozen=True)
class SceneFile:
    """A scene of a tree of cities."""

    path: Path
    city: str
    site: str


@dataclass(frozen=True)
class Part:
    """A rectangle of a scene that is tiled by itself.

    Attributes:
        scene_number: Number of the scene.
        prefix: What the ids of its tiles begin with.
        column: First column.
        row: First row.
        width: Pixels.
        height: Pixels.
        city: Where it lies; empty outside a tree of cities.
        site: Place within the city; likewise.
        split: ``train``, ``validation`` or ``test``; empty without a split.
    """

    scene_number: int
    prefix: str
    column: int
    row: int
    width: int
    height: int
    city: str = ""
    site: str = ""
    split: str = ""


def check_split(rule: SplitRule | None, is_tree: bool, path: Path) -> None:
    """Refuses a split of scenes that lie in no tree of cities.

    Raises:
        InputError: It is one.
    """
    if not is_tree and rule not in (None, "none"):
        raise InputError(
            f"--split {rule} needs a folder of <city>/<site>/<image> as --input_tif_path, not {path}; give that folder, or leave it out"
        )


def find_scenes(root: Path, ledger: Ledger) -> list[SceneFile]:
    """The images of a tree ``<city>/<site>/<image>``, sorted.

    Args:
        root: Folder of the cities.
        ledger: Takes the files that are no images, or lie at another depth.

    Raises:
        MissingInputError: No image has its place in such a tree.
    """
    files = sorted(path for path in root.rglob("*") if path.is_file() and not is_hidden(path.relative_to(root)))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    placed = [path for path in images if len(path.relative_to(root).parts) == 3]
    if not placed:
        raise MissingInputError(
            f"--input_tif_path {root} is a folder without images at <city>/<site>/<image> ({len(images)} images lie elsewhere in it); "
            "sort them so, or name the scenes themselves"
        )
    ledger.leave_out("files that are no images", (str(path.relative_to(root)) for path in files if path not in set(images)))
    ledger.leave_out("images not at <city>/<site>/<image>", (str(path.relative_to(root)) for path in images if path not in set(placed)))
    return [SceneFile(path, *path.relative_to(root).parts[:2]) for path in placed]


def is_hidden(path: Path) -> bool:
    """Whether a file, or a folder that it lies in, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def whole_scenes(scenes: Sequence[Scene]) -> list[Part]:
    """Parts of scenes outside a tree: each scene, its file name before its tiles' ids where there are several.

    Raises:
        InputError: Two scenes share a file name.
    """
    names = [scene.path.stem for scene in scenes]
    if len(set(names)) != len(names):
        raise InputError(
            f"scenes share a file name ({shown(sorted({name for name in names if names.count(name) > 1}))}), which would give tiles one id; rename them"
        )
    prefixes = [f"{name}-" if len(scenes) > 1 else "" for name in names]
    return [
        Part(number, prefix, 0, 0, scene.width, scene.height) for number, (scene, prefix) in enumerate(zip(scenes, prefixes, strict=True))
    ]


def divide(files: Sequence[SceneFile], scenes: Sequence[Scene], rule: SplitRule, shares: Sequence[float], seed: int) -> list[Part]:
    """Divides the scenes of cities into parts for training, validation and test.

    Args:
        files: The scenes.
        scenes: The same, opened.
        rule: ``last_site`` as published; ``sites`` and ``scenes`` deal each city's sites, or its scenes, by the shares; ``none``.
        shares: Of training, validation and test, adding up to 1.
        seed: Of the dealing.

    Raises:
        InputError: A city has too few sites or scenes for the rule, or two scenes would give their tiles one id.
    """
    if rule == "last_site":
        parts = list(published_parts(files, scenes))
    else:
        splits = [""] * len(files) if rule == "none" else deal(files, rule, shares, seed)
        parts = [
            Part(number, prefix_of(file), 0, 0, scene.width, scene.height, file.city, file.site, split)
            for number, (file, scene, split) in enumerate(zip(files, scenes, splits, strict=True))
        ]
    check_prefixes(parts)
    return parts


def prefix_of(file: SceneFile) -> str:
    """What the ids of a scene's tiles begin with."""
    return f"{file.city}-{file.site}-{file.path.stem}-"


def published_parts(files: Sequence[SceneFile], scenes: Sequence[Scene]) -> Iterator[Part]:
    """The published split: the last site of each city, its images halved, for test (left) and validation (right); all else for training.

    Raises:
        InputError: A city has a single site.
    """
    sites: dict[str, set[str]] = {}
    for file in files:
        sites.setdefault(file.city, set()).add(file.site)
    refuse_few(
        [city for city, own in sites.items() if len(own) < 2], "site", "the last site is not trained on", "--split scenes, or --split none"
    )
    for number, (file, scene) in enumerate(zip(files, scenes, strict=True)):
        if file.site != max(sites[file.city]):
            yield Part(number, prefix_of(file), 0, 0, scene.width, scene.height, file.city, file.site, TRAIN)
            continue
        left = scene.width // 2
        for half, column, width, split in ((1, 0, left, TEST), (2, left, scene.width - left, VALIDATION)):
            yield Part(number, f"{prefix_of(file)}half{half}-", column, 0, width, scene.height, file.city, file.site, split)


def deal(files: Sequence[SceneFile], rule: SplitRule, shares: Sequence[float], seed: int) -> list[str]:
    """The split of each file: the sites of every city, or its scenes, in random order, dealt by the shares; each share above 0 gets one or more.

    Raises:
        InputError: A city has fewer sites, or scenes, than there are shares above 0.
    """
    from imagery2flow.run.device import random_numbers  # here only: most runs of stage 1, and their workers, need no torch

    keys = [(file.city, file.site if rule == "sites" else str(file.path)) for file in files]
    wanted = [(split, share) for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    found: dict[tuple[str, str], str] = {}
    few = []
    for number, city in enumerate(sorted({file.city for file in files})):
        own = sorted({key for key in keys if key[0] == city})
        if len(own) < len(wanted):
            few.append(city)
            continue
        order = random_numbers(seed, number).permutation(len(own))
        # One of each first, and the rest by the shares.
        spare = len(own) - len(wanted)
        ends = np.rint(np.cumsum([share for _, share in wanted]) / sum(share for _, share in wanted) * spare).astype(int) + np.arange(
            1, len(wanted) + 1
        )
        for place, position in enumerate(order):
            found[own[position]] = wanted[int(np.searchsorted(ends, place, side="right"))][0]
    refuse_few(
        few, rule.removesuffix("s"), f"--split_shares asks for {len(wanted)} splits of each city's", "fewer shares above 0, or --split none"
    )
    return [found[key] for key in keys]


def refuse_few(cities: Sequence[str], what: str, why: str, remedy: str) -> None:
    """Refuses cities that a split would leave without training.

    Raises:
        InputError: There is one.
    """
    if cities:
        raise InputError(
            f"{len(cities)} cities have too few {what}s ({shown(sorted(cities))}), but {why} {what}s; add {what}s, remove those cities, or use {remedy}"
        )


def check_prefixes(parts: Sequence[Part]) -> None:
    """Refuses parts whose tiles would share ids: ``a-b/c`` and ``a/b-c``, or ``x.tif`` beside ``x.jpg``.

    Raises:
        InputError: There are some.
    """
    prefixes = [part.prefix for part in parts]
    if len(set(prefixes)) < len(prefixes):
        repeated = sorted({prefix.rstrip("-") for prefix in prefixes if prefixes.count(prefix) > 1})
        raise InputError(f"scenes would give tiles one id ({shown(repeated)}); rename a city, a site or an image")

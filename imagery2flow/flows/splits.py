"""What is trained on, what chooses the epoch, what is tested: by origin, by unit, by spatial block, or by pair.

origin   pairs of held-out origins, whose destinations are known from training (paper, Methods: 60/20/20, alike in population)
unit     pairs between held-out units: nothing of either end was seen, as in a new part of the city
block    the same, held out by spatial blocks, so that a held-out unit has few trained neighbours
pair     pairs at random, as GMEL does: every unit was seen, so that a model that learned its units by heart scores well

For ``unit`` and ``block`` a pair is tested if both ends are, trained on if both ends are, validated on if neither end is tested but one is
validated; pairs between a tested and another unit belong to no split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagery2flow.flows.graph import RegionGraph
from imagery2flow.flows.region import Region
from imagery2flow.flows.table import FlowTable, as_numbers, check_unit_ids
from imagery2flow.run.errors import Faults, InputError, TableError, shown
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

SPLITS = ("train", "valid", "test")
# Of five origins of like population three are trained on, one chooses the epoch, one is tested: 60/20/20 (paper, Methods).
OF_FIVE = ("train",) * 3 + ("valid",) + ("test",)
# Both ends must be held out, so that .3 of the units give .09 of the pairs.
OF_TEN = ("train",) * 5 + ("valid",) * 2 + ("test",) * 3
BLOCKS_PER_REGION = 20
SMALLEST_SPLIT = 2  # units of a region in each split


@dataclass(frozen=True)
class Split:
    """A split of pairs.

    Attributes:
        kind: origin, unit, block or pair.
        label: Split of each unit, "" for none [num_units] of text; without meaning for ``pair``.
        seed: Of the random split of pairs.
    """

    kind: str
    label: np.ndarray
    seed: int = 0

    def of(self, pairs: FlowTable) -> np.ndarray:
        """Split of pairs, "" for none: [num_pairs] of text."""
        if self.kind == "pair":
            return np.array(OF_FIVE, dtype=object)[hash_pairs(pairs.origin, pairs.destination, self.seed) % len(OF_FIVE)]
        origin, destination = self.label[pairs.origin], self.label[pairs.destination]
        if self.kind == "origin":
            return origin
        same = np.where(origin == destination, origin, "")
        unseen = (origin != "test") & (destination != "test") & (origin != "") & (destination != "")
        return np.where(unseen & (same != "train"), "valid", same).astype(object)


def hash_pairs(origin: np.ndarray, destination: np.ndarray, seed: int) -> np.ndarray:
    """A number per pair that looks random and depends on the pair and the seed only (splitmix64, Steele et al. 2014): [num_pairs], uint64."""
    with np.errstate(over="ignore"):
        value = (origin.astype(np.uint64) << np.uint64(32)) + destination.astype(np.uint64)
        value = value + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def draw_split(kind: str, region: Region, population: np.ndarray | None, seed: int, fold: int = 0) -> Split:
    """Draws a split; each region of several is split on its own.

    Args:
        kind: origin, unit, block or pair.
        region: The region; a unit without flows belongs to no split.
        population: Per unit, NaN where unknown [num_units], or None; ``origin`` and ``unit`` are stratified by it.
        seed: Of everything random.
        fold: Of ``origin``, which fifth is tested, 0 to 4: over the five folds of one seed every origin is tested once and chooses the epoch once.

    Raises:
        InputError: A region has fewer than two units for a split.
    """
    assert fold == 0 or kind == "origin"
    flows, graph = region.flows, region.graph
    assert flows is not None
    random = np.random.default_rng(seed)
    label = np.full(len(graph.geocodes), "", dtype=object)
    if kind == "pair":
        return Split(kind, label, seed)
    active = units_with_flows(kind, flows)
    known = np.full(len(graph.geocodes), np.nan) if population is None else population
    shares = (*OF_FIVE[fold:], *OF_FIVE[:fold]) if kind == "origin" else OF_TEN  # turned labels, the same draws
    for number, name in enumerate(region.names):
        units = active[region.part[active] == number]
        if kind == "block":
            label[units] = label_blocks(spatial_blocks(graph, units), random)
        else:
            label[units] = label_ranked(known[units], shares, random)
        check_size(label[units], name, kind)
    return Split(kind, label, seed)


def units_with_flows(kind: str, flows: FlowTable) -> np.ndarray:
    """Positions of the units that a split is about: those that somebody leaves or, unless it is one of origins, goes to; a row of 0 is nobody."""
    some = flows.universe("positive")
    return np.unique(some.origin if kind == "origin" else np.concatenate([some.origin, some.destination]))


def check_size(label: np.ndarray, name: str, kind: str) -> None:
    """Refuses a region with too few units in a split.

    Raises:
        InputError: A split has fewer than two units.
    """
    for split in SPLITS:
        count = int((label == split).sum())
        if count < SMALLEST_SPLIT:
            raise InputError(
                f"region {name} has {len(label)} units with flows, of which the split {kind} gives {count} to {split}, fewer than {SMALLEST_SPLIT}; give a region with more, or a split with --split_path"
            )


def label_ranked(population: np.ndarray, shares: Sequence[str], random: np.random.Generator) -> np.ndarray:
    """Labels units so that each split is alike in population.

    Units are ranked by population; each few neighbours in rank get the labels of ``shares`` in random order. Those of unknown population are
    ranked at random behind the others.

    Args:
        population: NaN where unknown [num_units].
        shares: Labels of so many neighbours in rank.
        random: Source of randomness.

    Returns:
        [num_units] of text.
    """
    label = np.full(len(population), "", dtype=object)
    # The random number decides among equal and unknown populations; NaN sorts last.
    ranked = np.lexsort((random.random(len(population)), population))
    for start in range(0, len(ranked), len(shares)):
        group = ranked[start : start + len(shares)]
        label[group] = random.permutation(np.array(shares, dtype=object))[: len(group)]
    return label


def label_blocks(block: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Labels units by their block [num_units]: whole blocks are trained on, validated on or tested."""
    numbers = np.unique(block)
    order = random.permutation(len(numbers))
    label = np.array(OF_TEN, dtype=object)[order * len(OF_TEN) // len(numbers)]
    return label[np.searchsorted(numbers, block)]


def spatial_blocks(graph: RegionGraph, units: np.ndarray) -> np.ndarray:
    """Blocks of about equally many neighbouring units: halves along the longer side, again and again. [num_units chosen] of numbers."""
    shrink = np.cos(np.radians(graph.latitude[units].mean())) if len(units) else 1.0
    place = np.stack([graph.longitude[units] * shrink, graph.latitude[units]], axis=1)  # [num_units chosen, 2]
    groups = [np.arange(len(units))]
    while groups and len(groups) < BLOCKS_PER_REGION and max(map(len, groups)) > 1:
        groups.sort(key=len)
        largest = groups.pop()
        side = int(np.argmax(np.ptp(place[largest], axis=0)))
        ordered = largest[np.argsort(place[largest, side], kind="stable")]
        groups += [ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]]
    block = np.zeros(len(units), dtype=np.int64)
    for number, group in enumerate(groups):
        block[group] = number
    return block


def read_split(path: str, kind: str, geocodes: Sequence[str], ledger: Ledger) -> Split:
    """Reads a split of units that was written before: geocode, split. Without ``geocodes`` the table itself is all that is checked.

    Raises:
        TableError: Columns, ids or values are wrong.
        InputError: A split of pairs is not one of units.
    """
    if kind == "pair":
        raise InputError(f"--split_path {path} holds a split of units and --split pair splits pairs; leave one of them out")
    table = read_table(path, "split", ("geocode",))
    ledger.reads(path)
    faults = Faults(f"split {path}")
    if not {"geocode", "split"} <= set(table.columns):
        raise TableError(f"split {path} needs the columns geocode and split, but has {shown(table.columns)}; rename them")
    wrong = table[~table.split.isin(SPLITS)]
    if len(wrong):
        faults.add(f"{len(wrong)} values are not among {', '.join(SPLITS)} ({shown(wrong.split)}); correct them")
    check_unit_ids(table.geocode, geocodes, faults)
    faults.raise_if_any()
    by_id = table.set_index("geocode").split.astype(object)  # a category takes no other value, not even none
    ledger.leave_out("units of the split file that are not in the region", by_id.index.difference(geocodes) if len(geocodes) else ())
    return Split(kind, by_id.reindex(list(geocodes)).fillna("").to_numpy(object))


def note_omitted(split: Split, flows: FlowTable, ledger: Ledger) -> None:
    """Names the units with flows that a split which was read does not hold, and whose flows are therefore neither learned from nor tested."""
    units = units_with_flows(split.kind, flows)
    omitted = units[split.label[units] == ""]
    ledger.leave_out(
        f"{'origins' if split.kind == 'origin' else 'units'} with flows that the split file omits",
        np.array(flows.geocodes, object)[omitted],
    )


def check_split(split: Split, pairs: FlowTable, universe: str, names: Sequence[str] = SPLITS) -> None:
    """Refuses a split in which training, validation or test, or those of them that are named, have no flow.

    Raises:
        InputError: One is empty.
    """
    label = split.of(pairs)[pairs.count > 0]
    for name in names:
        if not (label == name).any():
            raise InputError(
                f"the {name} split has no flow of the universe {universe} (of {len(label):,} such flows in all); use more units, --universe positive, or another --split_path"
            )


def read_population(path: str, column: str, geocodes: Sequence[str], ledger: Ledger) -> np.ndarray:
    """Population per unit, NaN where unknown or below 0, as the census codes what it withholds: [num_units].

    Raises:
        TableError: A column is missing, an id occurs more than once, or a population is no number.
    """
    return read_unit_column(path, "population", column, "--population_column", geocodes, ledger)


def read_unit_column(path: str, what: str, column: str, flag: str, geocodes: Sequence[str], ledger: Ledger) -> np.ndarray:
    """One column of a table per unit, NaN where unknown or below 0: [num_units]. Without ``geocodes`` the table itself is all that is checked.

    Raises:
        TableError: A column is missing, an id occurs more than once, or a value is no number.
    """
    table = read_table(path, what, ("geocode",))
    ledger.reads(path)
    if not {"geocode", column} <= set(table.columns):
        raise TableError(
            f"{what} {path} needs the columns geocode and {column}, but has {shown(table.columns)}; name the column with {flag}"
        )
    faults = Faults(f"{what} {path}")
    check_unit_ids(table.geocode, geocodes, faults)
    numbers = as_numbers(table[column])
    wrong = table[column][numbers.isna() & table[column].notna()]
    if len(wrong):
        faults.add(f"{len(wrong)} values of {column} are no numbers ({shown(wrong)}); give numbers, or leave the cell empty where unknown")
    faults.raise_if_any()
    return numbers.where(numbers >= 0).set_axis(table.geocode).reindex(list(geocodes)).to_numpy(np.float64)

"""Commuting flows from LODES: jobs by the census blocks of home and work, summed to tracts in one pass of bounded memory.

A state's file ``main`` holds those who live and work there, its file ``aux`` those who work there and live in another state. A block's number (15 digits) begins with
its tract's (11 digits): LODES8 has the blocks of the 2020 census, LODES7 those of 2010.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from imagery2flow.run.acquire_config import AcquireConfig
from imagery2flow.run.errors import InputError, first_sentence
from imagery2flow.run.stage import Ledger
from imagery2flow.sources.download import Downloader, Remote
from imagery2flow.sources.places import STATES

BLOCKS_PER_TRACT = 10_000  # a block's number without its last four digits is the tract's
TRACT_DIGITS = 11
COLUMNS = ("h_geocode", "w_geocode", "S000")
READ_BYTES = 8 << 20
MERGED_AT = 4_000_000  # pairs that may wait to be merged: 64 MB
LARGEST_ABSENT_SHARE = 0.5


def flow_files(states: Sequence[str], config: AcquireConfig, addresses: dict[str, str]) -> list[Remote]:
    """Files ``main`` and ``aux`` of states by their numbers."""
    place = {"version": config.lodes_version, "job_type": config.job_type, "year": config.year}
    return [
        Remote(
            f"LODES{config.lodes_version} {STATES[state]} {part} {config.year}",
            addresses["lodes_od"].format(state=STATES[state], part=part, **place),
        )
        for state in states
        for part in ("main", "aux")
    ]


def checksum_file(state: str, config: AcquireConfig, addresses: dict[str, str]) -> Remote:
    """The published list of hashes of a state's files."""
    letters = STATES[state]
    return Remote(
        f"the checksums of LODES{config.lodes_version} {letters}",
        addresses["lodes_sha256"].format(version=config.lodes_version, state=letters),
    )


def fetch_flows(
    tracts: Sequence[str], config: AcquireConfig, addresses: dict[str, str], downloader: Downloader, ledger: Ledger
) -> pd.DataFrame:
    """Commuters between the tracts of a region: h_geocode, w_geocode, count, complete_block; sorted; pairs that are absent are zeros.

    Raises:
        InputError: A file cannot be fetched or read, or most tracts of a state are not in LODES.
    """
    sums = TractSums(tracts)
    for state in sorted({tract[:2] for tract in tracts}):
        for remote in checked_files(state, config, addresses, downloader, ledger):
            path = downloader.fetch(remote)
            try:
                for home_block, work_block, jobs in read_blocks(path, remote):
                    sums.add(home_block, work_block, jobs)
            except InputError:
                downloader.forget(remote)
                raise
    check_occurrence(tracts, sums.occurs, config)
    for sentence in sums.sentences():
        ledger.note(sentence)
    flows = sums.flows()
    ledger.take_in("rows of LODES", sums.num_rows)
    ledger.note("LODES counts every job: pairs of tracts that are absent from the flows are zeros, which the column complete_block says")
    return flows


def checked_files(state: str, config: AcquireConfig, addresses: dict[str, str], downloader: Downloader, ledger: Ledger) -> list[Remote]:
    """A state's files with their published hashes; without them where the list cannot be had, which is said."""
    files, listing = flow_files([state], config, addresses), checksum_file(state, config, addresses)
    if downloader.is_fetched(listing):
        known = with_hashes(files, downloader.fetch(listing))
        if all(downloader.is_fetched(remote) for remote in known):
            return known
        downloader.forget(listing)  # LODES is published anew from time to time: the list must be as new as the files
    try:
        known = with_hashes(files, downloader.fetch(listing))
    except InputError as error:
        ledger.note(f"no checksums, the files are only checked for their size: {error}")
        return files
    if not any(remote.sha256 for remote in known):
        downloader.forget(listing)  # no list, or one of other files: it is asked for again
    for remote in known:
        if remote.sha256 is None:
            ledger.note(f"{listing.what} do not list {remote.what}, which is only checked for its size")
    return known


def with_hashes(files: Sequence[Remote], listing: Path) -> list[Remote]:
    """Files with their hashes out of a list of lines ``<sha256> <name>``; LODES lists the unpacked tables (.csv), not the files (.csv.gz)."""
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [re.fullmatch(r"([0-9a-fA-F]{64})[ \t]+\*?(?:.*/)?([^/]+?)\s*", line) for line in lines]
    hashes = {match[2]: match[1].lower() for match in found if match}
    names = [remote.url.rsplit("/", 1)[-1].removesuffix(".gz") for remote in files]
    return [dataclasses.replace(remote, sha256=hashes.get(name), is_hash_unpacked=True) for remote, name in zip(files, names, strict=True)]


def read_blocks(path: Path, remote: Remote) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Home block, work block and jobs of a file, some ten thousands of rows at a time: three arrays [num_rows] of int64.

    Raises:
        InputError: The file is damaged or has other columns.
    """
    import pyarrow
    from pyarrow import csv

    # Read as numbers, which is several times as fast; no empty cell passes for one.
    convert = csv.ConvertOptions(include_columns=list(COLUMNS), column_types=dict.fromkeys(COLUMNS, pyarrow.int64()), null_values=[])
    try:
        with csv.open_csv(path, read_options=csv.ReadOptions(block_size=READ_BYTES), convert_options=convert) as reader:
            for batch in reader:
                home_block, work_block, jobs = (batch.column(name).to_numpy() for name in COLUMNS)
                if (jobs < 0).any():
                    raise ValueError(f"{jobs.min()} jobs")
                yield home_block, work_block, jobs
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{remote.what} from {remote.address} cannot be read as a table with {', '.join(COLUMNS)} ({first_sentence(error)}); run the same command again, "
            "or name another address with --addresses"
        ) from error


class TractSums:
    """Adds up jobs between the tracts of a region, block by block.

    Args:
        tracts: Ids of eleven digits, sorted.

    Attributes:
        occurs: Which tracts were somebody's home or work: [num_tracts].
        num_rows: Rows that were added.
    """

    def __init__(self, tracts: Sequence[str]) -> None:
        self.tracts = tuple(tracts)
        self.numbers = np.array([int(tract) for tract in tracts], dtype=np.int64)
        assert (np.diff(self.numbers) > 0).all()
        self.occurs = np.zeros(len(self.numbers), dtype=bool)
        self.num_rows = 0
        self.jobs_by_side = np.zeros(4, dtype=np.int64)  # 2 * (home in the region) + (work in the region)
        self.pairs, self.counts = np.empty(0, np.int64), np.empty(0, np.int64)  # merged: home * num_tracts + work, and jobs
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, home_block: np.ndarray, work_block: np.ndarray, jobs: np.ndarray) -> None:
        """Adds rows: three arrays [num_rows] of int64."""
        home, home_is_inside = self.locate(home_block)
        work, work_is_inside = self.locate(work_block)
        self.num_rows += len(jobs)
        self.jobs_by_side += np.bincount(2 * home_is_inside + work_is_inside, weights=jobs, minlength=4).astype(np.int64)
        self.occurs[home[home_is_inside]] = True
        self.occurs[work[work_is_inside]] = True
        inside = home_is_inside & work_is_inside
        self.waiting.append(sum_by_key(home[inside] * len(self.numbers) + work[inside], jobs[inside]))
        # At least as many as are merged, so that merging costs each pair a bounded number of times.
        if sum(len(pairs) for pairs, _ in self.waiting) > max(MERGED_AT, len(self.pairs)):
            self.merge()

    def locate(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position of each block's tract, and whether it is one of the region: [num_rows] each."""
        tract = block // BLOCKS_PER_TRACT
        position = np.minimum(np.searchsorted(self.numbers, tract), len(self.numbers) - 1)
        return position, self.numbers[position] == tract

    def merge(self) -> None:
        """Adds what waits to what is merged."""
        parts = [(self.pairs, self.counts), *self.waiting]
        self.pairs, self.counts = sum_by_key(*(np.concatenate(side) for side in zip(*parts, strict=True)))
        self.waiting = []

    def flows(self) -> pd.DataFrame:
        """h_geocode, w_geocode, count, complete_block of the pairs with jobs, sorted."""
        self.merge()
        positive = self.counts > 0
        home, work = np.divmod(self.pairs[positive], len(self.numbers))
        ids = np.array(self.tracts, dtype=object)
        return pd.DataFrame({"h_geocode": ids[home], "w_geocode": ids[work], "count": self.counts[positive], "complete_block": 1})

    def sentences(self) -> list[str]:
        """What was counted where, and the tracts without anybody."""
        neither, only_work, only_home, both = (int(jobs) for jobs in self.jobs_by_side)
        absent = int((~self.occurs).sum())
        told = [
            f"{both:,} jobs have home and work in the region; left out are {only_work:,} whose home, {only_home:,} whose work and {neither:,} of which neither "
            "is a tract of it"
        ]
        return told + ([f"{absent:,} of {len(self.occurs):,} tracts are nobody's home or work"] if absent else [])


def sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, sorted, and the sum of the values of each."""
    if not len(keys):
        return keys.astype(np.int64), values.astype(np.int64)
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(values, first)


def check_occurrence(tracts: Sequence[str], occurs: np.ndarray, config: AcquireConfig) -> None:
    """Refuses tracts that LODES does not know, as those of another census.

    Raises:
        InputError: Most tracts of a state occur nowhere.
    """
    states = np.array([tract[:2] for tract in tracts])
    for state in np.unique(states):
        absent = ~occurs[states == state]
        if absent.mean() > LARGEST_ABSENT_SHARE:
            hint = (
                "Connecticut's planning regions took the place of its counties in the tracts of 2022 and later, but not in LODES: use --vintage 2020 or 2021"
                if state == "09"
                else f"LODES{config.lodes_version} has the tracts of the {config.census} census: use units of that, or another --vintage"
            )
            raise InputError(
                f"{int(absent.sum()):,} of {len(absent):,} units of state {state} ({STATES[state]}) are nobody's home or work in LODES{config.lodes_version} "
                f"{config.year} {config.job_type}; {hint}"
            )

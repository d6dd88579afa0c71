"""Labels of patches, and which patches a model learns from: columns of manifest.csv, or of a table that is joined to it.

The column ``split`` of the manifest says train, validation or test of each patch. Where groups are held out (leave-cities-out) the patches of one fold of them are
the test instead, and those of the other groups keep their split, but for their own test patches, which then are neither learned from nor tested on: a city's score is
that of a model that saw none of its patches, and the models of all folds together test every city once.

A table is joined by the ids of patches, or by names of cities (``run.keys``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from imagery2flow.encoder.supervised import Outputs
from imagery2flow.imagery.cutting import USABLE
from imagery2flow.imagery.sites import SPLITS
from imagery2flow.run.config import LabelConfig
from imagery2flow.run.device import random_numbers
from imagery2flow.run.errors import Faults, MissingInputError, TableError, shown
from imagery2flow.run.files import content_hash
from imagery2flow.run.keys import key_columns, match_keys
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import read_table

FOLDS = 3  # purpose of random numbers, as a key of ``run.device.random_numbers``
SPLIT_REMEDY = "cut the patches with img_preprocessing.py --split, which keeps sites apart, or hold out groups with --held_out_column"


@dataclass(frozen=True)
class Labels:
    """What is known of the patches of a folder.

    Attributes:
        outputs: Classes or targets, with their statistics over the training patches.
        split: train, validation or test of each labelled patch; index geocode.
        values: Text of the class (column 0), or a number per target, NaN where it is missing; index geocode.
        groups: What balanced sampling draws equally often, one text per patch; None where every patch is shown once.
    """

    outputs: Outputs
    split: pd.Series[str]
    values: pd.DataFrame
    groups: pd.Series[str] | None

    def ids(self, split: str) -> list[str]:
        """Patches of a split, as sorted as they came."""
        return self.split.index[self.split == split].tolist()

    def codes(self, geocodes: Sequence[str]) -> np.ndarray:
        """Number of each patch's class among the names of ``outputs`` [num_patches]."""
        return pd.Index(self.outputs.names).get_indexer(pd.Index(self.values.loc[list(geocodes)].iloc[:, 0]))

    def scaled_targets(self, geocodes: Sequence[str]) -> np.ndarray:
        """Targets as the head is to say them [num_patches, num_targets], NaN where missing."""
        found: np.ndarray = self.values.loc[list(geocodes)].to_numpy(np.float64)
        return (found - self.outputs.offset) / np.array(self.outputs.scale)

    @property
    def splits(self) -> dict[str, list[str]]:
        """The patches of each split."""
        return {name: self.ids(name) for name in SPLITS}

    @property
    def sha256(self) -> str:
        """Hash of all that training depends on."""
        used = self.split.isin(SPLITS[:2])
        groups = [] if self.groups is None else self.groups[used].tolist()
        values = self.values[used]
        columns = [values[name].tolist() if self.outputs.kind == "classes" else values[name].to_numpy() for name in values]
        return content_hash([self.outputs.as_plain(), self.split[used].index.tolist(), self.split[used].tolist(), columns, groups])


def training_patches(data_path: str, geocodes: Sequence[str], ledger: Ledger) -> list[str]:
    """The patches that an objective without labels learns from: where the manifest tells their split, those of ``train``.

    Raises:
        TableError: The column ``split`` has other values than train, validation and test.
        InputError: No patch is for training.
    """
    if not (Path(data_path) / "manifest.csv").is_file():
        return list(geocodes)
    faults = Faults(f"manifest.csv of {data_path}")
    split = split_column(read_manifest_columns(data_path, geocodes, ()), faults)
    faults.raise_if_any()
    if split is None:
        return list(geocodes)
    chosen = split.index[split == "train"].tolist()
    if not chosen:
        raise TableError(f"manifest.csv of {data_path} has no patch of the split train (but {shown(split.unique())}); {SPLIT_REMEDY}")
    ledger.note(
        f"manifest.csv has a column split: the encoder learns from the {len(chosen):,} patches of train, not from the other {len(split) - len(chosen):,}"
    )
    return chosen


def read_labels(
    config: LabelConfig, data_path: str, geocodes: Sequence[str], seed: int, target_scale: float | None, ledger: Ledger
) -> Labels:
    """Reads the labels of patches and which of them are learned from.

    Args:
        config: Columns, table, and what is held out; targets if it names any, else classes.
        data_path: Folder of the patches.
        geocodes: Their ids.
        seed: Seed of the order in which groups are dealt into folds.
        target_scale: As in ``Outputs``.
        ledger: Takes what is left out.

    Raises:
        MissingInputError: The folder has no manifest, or the table is absent.
        TableError: Columns, keys, values or splits cannot be used; all faults are named.
    """
    faults = Faults(f"labels of {data_path}")
    manifest = read_manifest_columns(data_path, geocodes, (config.label_column, config.held_out_column, config.labels_key))
    joined = None if config.labels_path is None else join_table(config, manifest, faults, ledger)
    columns = [*config.target_column, *([config.label_column] if config.label_column else [])]
    found = {name: find_column(name, joined, manifest, config, faults) for name in columns}
    split = held_out_split(config, manifest, found, seed, faults) if config.held_out_column else split_column(manifest, faults)
    if split is None and not faults.sentences:
        faults.add(
            f"manifest.csv has no column split, so that nothing says which patches are for training and which for testing; {SPLIT_REMEDY}"
        )
    faults.raise_if_any()
    assert split is not None
    values = pd.DataFrame({name: found[name] for name in learned_columns(config)})
    is_labelled = values.notna().any(axis=1)
    note_unlabelled(config, manifest, is_labelled, ledger)
    reason = "patches without a split" + " (or of the split test, but of groups that are not held out)" * (
        config.held_out_column is not None
    )
    ledger.leave_out(reason, split.index[is_labelled & (split == "")])
    split, values = split[is_labelled & split.isin(SPLITS)], values[is_labelled & split.isin(SPLITS)]
    held_out = tuple(sorted(manifest.loc[split.index, config.held_out_column][split == "test"].unique())) if config.held_out_column else ()
    outputs = make_outputs(config, values[split == "train"], held_out, target_scale, faults)
    faults.raise_if_any()
    if outputs.kind == "classes":
        split, values = without_unseen_classes(split, values, outputs, ledger)
    grouping = found.get(config.label_column or "")
    groups = None if grouping is None else grouping.reindex(split.index).fillna("")
    ledger.note(describe(outputs, split))
    return Labels(outputs, split, values, groups)


def learned_columns(config: LabelConfig) -> list[str]:
    """The columns that a model is to say something of."""
    return config.target_column or [config.label_column or ""]


def read_manifest_columns(data_path: str, geocodes: Sequence[str], text_columns: Sequence[str | None]) -> pd.DataFrame:
    """The manifest's rows of some patches, in their order, with columns of names as text.

    Raises:
        MissingInputError: There is no manifest.
    """
    path = Path(data_path) / "manifest.csv"
    if not path.is_file():
        raise MissingInputError(f"{data_path} has no manifest.csv, which tells the split of patches; {SPLIT_REMEDY}")
    text = ("geocode", "path", "split", *(name for name in text_columns if name))
    manifest = read_table(path, "manifest", text)
    return manifest[manifest.status.isin(USABLE)].set_index("geocode", drop=False).reindex(list(geocodes))


def split_column(manifest: pd.DataFrame, faults: Faults) -> pd.Series[str] | None:
    """The split of each patch; None where the manifest tells none."""
    if "split" not in manifest or manifest.split.isna().all():
        return None
    foreign = manifest.split[~manifest.split.isin(SPLITS) & manifest.split.notna()]
    if len(foreign):
        faults.add(
            f"{len(foreign):,} values of the column split are not among {', '.join(SPLITS)} ({shown(foreign.unique())}); correct them"
        )
    return manifest.split.fillna("")


def held_out_split(
    config: LabelConfig, manifest: pd.DataFrame, found: dict[str, pd.Series[str] | None], seed: int, faults: Faults
) -> pd.Series[str] | None:
    """The split where the patches of one fold of the groups are the test; see the module's docstring."""
    name = config.held_out_column
    if name not in manifest:
        faults.add(f"manifest.csv has no column {name} (but {shown(manifest.columns)}); name another with --held_out_column")
        return None
    columns = [found[column] for column in learned_columns(config)]
    is_labelled = np.logical_or.reduce(
        [column.notna() for column in columns if column is not None] or [np.zeros(len(manifest), dtype=bool)]
    )
    groups = manifest[name]
    order = sorted(groups[is_labelled].dropna().unique())
    if len(order) < config.folds:
        if all(column is not None for column in columns):
            faults.add(
                f"the column {name} has {len(order)} groups with a label but --folds is {config.folds}; use at most as many folds as groups"
            )
        return None
    dealt = random_numbers(seed, FOLDS).permutation(len(order))
    test = {order[number] for place, number in enumerate(dealt) if place % config.folds == config.fold - 1}
    given = split_column(manifest, faults)
    others = pd.Series("train", index=manifest.index) if given is None else given.where(given != "test", "")
    return others.mask(groups.isin(test), "test").mask(groups.isna(), "")


def join_table(config: LabelConfig, manifest: pd.DataFrame, faults: Faults, ledger: Ledger) -> pd.DataFrame | None:
    """The rows of the table of labels that belong to each patch, in the manifest's order; empty rows where it knows none."""
    assert config.labels_path is not None
    where, key = f"table {config.labels_path}", config.labels_key
    header = read_table(config.labels_path, "table of labels", ()).columns
    named = key_columns(header, key)
    if key not in manifest:
        faults.add(
            f"manifest.csv has no column {key} (but {shown(manifest.columns)}); name the one that joins it to labels with --labels_key"
        )
    if len(named) != 1:
        faults.add(
            f"{where} has {'no' if not named else 'more than one'} column {key} (but {shown(header)}); name the one of its keys with --labels_key"
        )
    if key not in manifest or len(named) != 1:
        return None
    text = [named[0], *([config.label_column] if config.label_column else [])]
    table = read_table(config.labels_path, "table of labels", text).rename(columns={named[0]: key})
    ledger.reads(config.labels_path)
    if pd.api.types.is_numeric_dtype(table[key]) and len(table):
        faults.add(f"{where} stores {key} as numbers, in which zeros at the front are lost; store it as text")
        return None
    ledger.leave_out(f"rows of {where} without a {key}", table.index[table[key].isna()] + 1)
    table = table[table[key].notna()]
    repeated = table[key][table[key].duplicated()]
    if len(repeated):
        faults.add(
            f"{where} has {repeated.nunique():,} values of {key} in more than one row ({shown(repeated.unique())}); keep one row each"
        )
        return None
    keys = manifest[key].dropna().unique()
    found, several = match_keys(keys, table[key].tolist(), key)
    for name, candidates in several.items():
        faults.add(f"{where} has several rows for the {key} {name} ({shown(candidates)}); write the whole name in both")
    number = {other: row for row, other in enumerate(table[key])}
    row_of = {name: number[other] for name, other in found.items()}
    if not row_of and len(keys):
        faults.add(
            f"{where} has no row for any of the {len(keys):,} values of {key} of the patches ({shown(keys)}, there {shown(table[key])}); see --labels_key"
        )
    elif len(row_of) < len(keys):
        ledger.leave_out(f"{key} not in {where}, with all patches", sorted(set(keys) - set(row_of)))
    rows = manifest[key].map(row_of)
    return table.reset_index(drop=True).reindex(rows.fillna(-1).astype(int)).set_index(manifest.index)


def find_column(
    name: str, joined: pd.DataFrame | None, manifest: pd.DataFrame, config: LabelConfig, faults: Faults
) -> pd.Series[str] | None:
    """A column of the table of labels, or else of the manifest: numbers of a target, else text; None with a fault."""
    if joined is None and config.labels_path is not None:
        return None  # the table has faults of its own
    source = joined if joined is not None and name in joined else manifest
    flag = "--target_column" if name in config.target_column else "--label_column"
    if name not in source:
        there = "manifest.csv has no" if joined is None else f"neither {config.labels_path} nor manifest.csv has a"
        has = manifest.columns if joined is None else [*joined.columns, *manifest.columns]
        faults.add(f"{there} column {name} (but {shown(has)}); name another with {flag}")
        return None
    column = source[name]
    if name not in config.target_column:
        return column
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    unreadable = column[numbers.isna() & column.notna()].unique()
    if len(unreadable):
        faults.add(
            f"the column {name} holds {len(unreadable):,} values that are no numbers ({shown(unreadable)}); correct them, or leave them empty"
        )
    if np.isinf(numbers).any():
        faults.add(
            f"the column {name} holds infinite values, of {int(np.isinf(numbers).sum()):,} patches; correct them, or leave them empty"
        )
    return numbers


def note_unlabelled(config: LabelConfig, manifest: pd.DataFrame, is_labelled: pd.Series[bool], ledger: Ledger) -> None:
    """Lists what has no label: patches, or the keys by which the table is joined; those that it does not know at all are listed already."""
    what, missing = "patches without a label", manifest[~is_labelled]
    listed = {text for reason, ids in ledger.left_out.items() if reason.endswith("with all patches") for text in ids}
    if config.labels_path is None or config.labels_key == "geocode":
        ledger.leave_out(what, [geocode for geocode in missing.index if geocode not in listed])
        return
    keys = [key for key in sorted(missing[config.labels_key].dropna().unique()) if key not in listed]
    ledger.leave_out(f"{config.labels_key} without a label, with their patches", keys)
    ledger.leave_out(f"patches without a {config.labels_key}", missing.index[missing[config.labels_key].isna()])


def make_outputs(
    config: LabelConfig, train: pd.DataFrame, held_out: tuple[str, ...], target_scale: float | None, faults: Faults
) -> Outputs:
    """What a model that learns from these patches says."""
    names = ", ".join(train.columns)
    if train.empty:
        faults.add(f"no patch of the split train has a value of {names}; {SPLIT_REMEDY}, or check the labels")
        return Outputs("classes", ())
    if not config.target_column:
        classes = tuple(sorted(train.iloc[:, 0].unique()))
        if len(classes) < 2:
            faults.add(f"the patches of the split train have one class of {names} only ({classes[0]}); classifying needs at least two")
        return Outputs("classes", classes, column=str(config.label_column), held_out=held_out)
    empty = train.columns[train.isna().all()]
    if len(empty):
        faults.add(f"no patch of the split train has a value of {', '.join(empty)}; leave it out of --target_column, or check the labels")
    mean, std = train.mean(), train.std(ddof=0)
    std = std.where(train.max() > train.min(), 1.0)  # of equal numbers the deviation may be a rounding error above 0
    return Outputs("targets", tuple(train.columns), tuple(mean.tolist()), tuple(std.tolist()), "", held_out, target_scale)


def without_unseen_classes(
    split: pd.Series[str], values: pd.DataFrame, outputs: Outputs, ledger: Ledger
) -> tuple[pd.Series[str], pd.DataFrame]:
    """Leaves out validation patches whose class has no training patch; test patches of such classes stay what they are."""
    unseen = ~values.iloc[:, 0].isin(outputs.names)
    ledger.leave_out("classes without a training patch, which the model never sees", sorted(values.iloc[:, 0][unseen].unique()))
    kept = ~(unseen & (split == "validation"))
    ledger.leave_out("validation patches of such classes", split.index[~kept])
    return split[kept], values[kept]


def describe(outputs: Outputs, split: pd.Series[str]) -> str:
    """What is learned, from how much."""
    counts = ", ".join(f"{int((split == name).sum()):,} {name}" for name in SPLITS)
    text = f"{len(outputs.names)} {outputs.kind} ({shown(outputs.names)}); labelled patches: {counts}"
    return f"{text}; held out: {', '.join(outputs.held_out)}" if outputs.held_out else text

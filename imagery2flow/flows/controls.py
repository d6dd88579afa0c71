"""What every score is read against: the same model without the thing whose worth is in question.

distance only       trees on the distance alone
band statistics     trees on each band's mean and deviation, the area and the distance: nothing learned from images
shuffled images     the whole model, with each unit given the image columns of another unit of its region
untrained encoder   the whole model, with the vectors of an encoder with random weights

A learned encoder that does not beat the last three has not earned its cost.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from imagery2flow.flows.region import Region, is_image_column
from imagery2flow.run.device import random_numbers
from imagery2flow.run.flow_config import FlowTrainingConfig, TreesConfig
from imagery2flow.run.stage import Ledger

MODEL, DISTANCE, BANDS, SHUFFLED, UNTRAINED = "model", "distance only", "band statistics", "shuffled images", "untrained encoder"
CONTROLS = (DISTANCE, BANDS, SHUFFLED, UNTRAINED)
SHUFFLE = 6  # purpose of random numbers


@dataclass(frozen=True)
class Variant:
    """A model to fit: its name, settings, the region as it sees it, and whether it has a graph network."""

    name: str
    config: FlowTrainingConfig
    region: Region
    network: bool

    def row(self, decoder: str) -> str:
        """What a table of results calls one of its decoders."""
        if self.name == MODEL:
            return decoder
        return f"{decoder}, {self.name}" if self.network else self.name


def variants(config: FlowTrainingConfig, region: Region, ledger: Ledger) -> list[Variant]:
    """The model and, unless they are switched off, its controls; says which cannot be had and why."""
    chosen = [Variant(MODEL, config, region, network=True)]
    for name in CONTROLS if config.controls else ():
        seen = as_seen(name, region, config.seed)
        if seen is None:
            ledger.note(f"no control with {name}: {WHY_NOT[name]}")
        else:
            chosen.append(Variant(name, settings(name, config), seen, network=name in (SHUFFLED, UNTRAINED)))
    return chosen


WHY_NOT = {
    BANDS: "the features have no columns <band>_mean and <band>_std (stage 3 adds them)",
    SHUFFLED: "no column of the features comes from an image",
    UNTRAINED: "there is no table <features>_untrained beside the features (stage 3 writes it)",
}


def settings(name: str, config: FlowTrainingConfig) -> FlowTrainingConfig:
    """The settings of a control."""
    if name in (SHUFFLED, UNTRAINED):
        return config
    trees = TreesConfig(num_trees=300, feature_share=1.0, pair_share=1.0, potentials=False, transfer_trees=0, unit_features=name == BANDS)
    return dataclasses.replace(config, trees=trees, context_m=[], area_feature=name == BANDS)


def as_seen(name: str, region: Region, seed: int) -> Region | None:
    """A region as a control sees it, or None where it lacks what the control needs; the same for training and for prediction."""
    if name == MODEL:
        return region
    image = [number for number, column in enumerate(region.columns) if is_image_column(column)]
    if name == DISTANCE:
        return keep_columns(region, [])
    if name == BANDS:
        statistics = [number for number in image if not region.columns[number].isdigit()]
        return keep_columns(region, statistics) if statistics else None
    embeddings = region.embeddings.copy()
    if name == SHUFFLED:
        if not image:
            return None
        for number, units in enumerate(region.parts()):
            other = random_numbers(seed, SHUFFLE, number).permutation(units)
            embeddings[units[:, None], image] = region.embeddings[other[:, None], image]
    else:
        if region.untrained is None:
            return None
        embeddings[:, [number for number in image if region.columns[number].isdigit()]] = region.untrained
    return dataclasses.replace(region, embeddings=embeddings)


def keep_columns(region: Region, numbers: list[int]) -> Region:
    """A region with some of its columns."""
    return dataclasses.replace(
        region, columns=tuple(region.columns[number] for number in numbers), embeddings=region.embeddings[:, numbers]
    )

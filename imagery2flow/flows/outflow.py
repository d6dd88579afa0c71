"""From predicted flows to what a user of a whole matrix wants: known outflows kept, and only the largest flows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from imagery2flow.flows.record import EmbeddedRegion, FlowRecord
from imagery2flow.flows.table import FlowTable
from imagery2flow.run.flow_config import DECODERS
from imagery2flow.run.stage import Ledger


@dataclass(frozen=True)
class RegionPredictor:
    """A model on a region.

    Attributes:
        record: The model.
        embedded: The region as its decoders see it.
        decoders: Those that predict.
        factor: What each origin's predictions are multiplied by, per decoder [num_units]; empty for 1.
    """

    record: FlowRecord
    embedded: EmbeddedRegion
    decoders: Sequence[str] = DECODERS
    factor: dict[str, np.ndarray] = field(default_factory=dict)

    def predict(self, pairs: FlowTable) -> dict[str, np.ndarray]:
        """Predicted flows of pairs by each decoder: [num_pairs] each, in commuters."""
        predictions = self.record.predict(self.embedded, pairs, self.decoders)
        return {name: values * self.factor[name][pairs.origin] if self.factor else values for name, values in predictions.items()}

    def with_outflows(
        self, totals: np.ndarray, kind: Literal["outflow", "share"], every_pair: Iterable[FlowTable], ledger: Ledger
    ) -> RegionPredictor:
        """The same model, held to known outflows: T'_od = T_od O_o / sum_d T_od.

        Args:
            totals: Outflow O of each unit, or what it is proportional to; NaN where unknown [num_units].
            kind: outflow: commuters; share: any measure such as population, with the sum of all predictions kept.
            every_pair: Every pair of units, in blocks of whole origins.
            ledger: Takes units without a total, and those that cannot be brought to theirs.
        """
        num_units = len(totals)
        sums: dict[str, np.ndarray] = {}
        for pairs in every_pair:
            for name, values in self.record.predict(self.embedded, pairs, self.decoders).items():
                sums.setdefault(name, np.zeros(num_units))
                sums[name] += np.bincount(pairs.origin, values, minlength=num_units)
        unknown = np.isnan(totals)
        ledger.leave_out(
            "units without a known total, whose predictions are not scaled", np.array(self.embedded.seen.region.graph.geocodes)[unknown]
        )
        factor = {}
        for name, predicted in sums.items():
            known = ~unknown & (predicted > 0)
            stuck = np.array(self.embedded.seen.region.graph.geocodes)[(totals > 0) & (predicted <= 0)]
            ledger.leave_out(f"units with a known total whose {name} predictions are all 0, which no factor raises", stuck)
            scale = predicted[known].sum() / max(totals[known].sum(), 1e-12) if kind == "share" else 1.0
            factor[name] = np.ones(num_units)
            factor[name][known] = totals[known] * scale / predicted[known]
        return RegionPredictor(self.record, self.embedded, self.decoders, factor)


def largest_destinations(origin: np.ndarray, predicted: np.ndarray, top_k: int) -> np.ndarray:
    """Which pairs are among the k largest of their origin; of equal ones the first: [num_pairs] of bool.

    Args:
        origin: [num_pairs]; all pairs of an origin stand together.
        predicted: [num_pairs].
        top_k: How many to keep.
    """
    order = np.lexsort((np.arange(len(origin)), -predicted, origin))
    ordered = origin[order]
    first = np.searchsorted(ordered, ordered)  # where the run of each origin begins
    kept = np.zeros(len(origin), dtype=bool)
    kept[order[np.arange(len(origin)) - first < top_k]] = True
    return kept

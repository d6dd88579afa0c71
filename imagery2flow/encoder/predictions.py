"""What stage 3 writes of a model that was trained with labels: a prediction per patch instead of a vector.

Index ``geocode``; ``split``: train, validation or test as the model saw the patch, unknown where it did not; for classes ``probability_<class>``, for targets
``predicted_<target>`` and ``mean_<target>``, which is what a model says that looks at nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor, nn

from imagery2flow.encoder.checkpoint import EncoderRecord, load_checkpoint
from imagery2flow.encoder.supervised import Outputs, Supervised, as_predictions, load_supervised, outputs_of
from imagery2flow.run.stage import Ledger
from imagery2flow.run.tables import write_table

UNKNOWN = "unknown"


class Predictor(nn.Module):
    """Encoder, head, and the scales of what the head says."""

    def __init__(self, model: Supervised, outputs: Outputs) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, views: Tensor) -> Tensor:
        """Views [batch, num_bands, size, size] -> probabilities, or targets in their units, [batch, num_outputs]."""
        return as_predictions(self.model(views)[1], self.outputs)


def load_predictor(checkpoint: Path) -> tuple[Predictor, EncoderRecord]:
    """The model of a checkpoint, in evaluation mode, and what the checkpoint says of its encoder.

    Raises:
        MissingInputError: There is no such file.
        InputError: It cannot be read, or was trained without labels.
    """
    model, record, outputs = load_supervised(checkpoint)
    return Predictor(model, outputs).eval(), record


def prediction_table(geocodes: Sequence[str], predictions: np.ndarray, outputs: Outputs, splits: dict[str, Sequence[str]]) -> pd.DataFrame:
    """The table of predictions [num_patches, num_outputs]; see the module's docstring.

    Args:
        geocodes: Ids of the rows.
        predictions: Probabilities, or targets in their units.
        outputs: What the model says.
        splits: Patches of each split, as the model saw them.
    """
    seen = {geocode: split for split, ids in splits.items() for geocode in ids}
    table = pd.DataFrame({"split": [seen.get(geocode, UNKNOWN) for geocode in geocodes]}, index=pd.Index(geocodes, name="geocode"))
    if outputs.kind == "classes":
        columns = {f"probability_{name}": predictions[:, number] for number, name in enumerate(outputs.names)}
    else:
        columns = {f"predicted_{name}": predictions[:, number] for number, name in enumerate(outputs.names)}
        columns |= {f"mean_{name}": np.full(len(table), mean) for name, mean in zip(outputs.names, outputs.mean, strict=True)}
    return table.join(pd.DataFrame(columns, index=table.index))


def write_predictions(path: Path, checkpoint: Path, geocodes: Sequence[str], predictions: np.ndarray, ledger: Ledger) -> None:
    """Writes the table and says how the model saw the patches."""
    content = load_checkpoint(checkpoint)
    outputs = outputs_of(content)
    table = prediction_table(geocodes, predictions, outputs, content.get("splits", {}))
    write_table(path, table, index=True)
    counts = ", ".join(f"{count:,} {split}" for split, count in table.split.value_counts().items())
    ledger.note(f"predictions of {len(outputs.names)} {outputs.kind}; the model saw the patches as: {counts}")
    ledger.went_out["predictions"] = len(table)

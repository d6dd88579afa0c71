#!/usr/bin/env python
r"""Stage 2: train an image encoder on patches: without labels (SimCLR), to tell classes (cities) apart, or to predict numbers (indexes of cities).

    python train_img_encoder.py --data_path data/M1/l8_2020 --total_epoch 120 --model_path ckpt --log M1_l8
    python train_img_encoder.py --config configs/paper/train_img_encoder.yaml --data_path data/M1/l8_2020 --log M1_l8
    python train_img_encoder.py --objective classify --label_column city --data_path data/cities/rgb_2020 --log cities
    python train_img_encoder.py --objective regress --target_column overall planet --labels_path indexes.csv --labels_key city \
        --held_out_column city --folds 5 --fold 1 --data_path data/cities/rgb_2020 --log indexes_1   # tested on cities that it never sees
    torchrun --nproc_per_node 4 -- train_img_encoder.py --data_path data/M1/l8_2020 --log M1_l8       # several GPUs; mind the "--"
    python train_img_encoder.py --data_path data/M1/l8_2020 --log M1_l8                               # after a stop: the same command

If GPU memory runs out, lower --batch_size (it is also the number of negatives) or --view_size. --init imagenet, or a file, begins with trained weights.

Reads   the patches and manifest.csv of stage 1 (column split: train, validation or test; with labels it must be there), a table of labels.
Writes  <model_path>/<log>_img_<total_epoch>.pth, and beside it _best.pth, _metrics.csv, _loss.png, _run.json.
Next    get_img_embedding.py
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from imagery2flow.run.cli import parse_config
from imagery2flow.run.config import EncoderConfig
from imagery2flow.run.stage import Ledger, is_first_process, run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, runs the stage, returns the exit status."""
    return run_stage("train_img_encoder", parse_config("train_img_encoder.py", EncoderConfig, argv), work)


def work(config: EncoderConfig, ledger: Ledger) -> Path:
    """Trains, then draws the loss."""
    import pandas as pd  # after parsing: --help answers at once

    from imagery2flow.encoder.trainer import metrics_path
    from imagery2flow.encoder.training import train_encoder
    from imagery2flow.figures.results import loss_curve
    from imagery2flow.run.files import save_figure

    run_file = train_encoder(config, ledger)
    if is_first_process():
        metrics = metrics_path(config)
        save_figure(metrics.with_name(metrics.name.replace("_metrics.csv", "_loss.png")), loss_curve(pd.read_csv(metrics)))
    return run_file


if __name__ == "__main__":
    sys.exit(main())

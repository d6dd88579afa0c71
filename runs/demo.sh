#!/usr/bin/env bash
# Imagery2Flow on a generated metro (M1) and a second city (M2, another UTM zone): the five commands, as on real data.
# Everything is written below ./demo; about 5 minutes on 2 CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf demo
started=$SECONDS

say() { printf '\n== %s\n' "$*"; }
run() { printf '\n$ python %s\n' "$*"; python -W ignore "$@"; }

say "0  two generated cities: imagery, tracts, flows that follow a known law"
run -m imagery2flow synthetic --output_dir demo/data --region M1 --num_units 600 --size_px 815 --seed 1 --utm_zone 18
run -m imagery2flow synthetic --output_dir demo/data --region M2 --num_units 400 --size_px 665 --seed 2 --utm_zone 17

for region in M1 M2; do
    run -m imagery2flow land_cover --units_path demo/data/$region/units.gpkg --raster_path demo/data/$region/land_use.tif \
        --output_path demo/data/$region/land_use.csv
done

say "1  one image patch per tract"
for region in M1 M2; do
    run img_preprocessing.py --input_tif_path demo/data/$region/scene.tif --shp_path demo/data/$region/units.gpkg \
        --output_tif_dir demo/data --region $region --year 2020 --tag l8
done

say "2  the image encoder, trained on M1 without labels"
run train_img_encoder.py --data_path demo/data/M1/l8_2020 --bands 3 --resnet resnet18 --batch_size 128 --lr 0.001 --projection_dim 128 \
    --temperature 0.5 --total_epoch 25 --cos --view_size 32 --model_path demo/ckpt --log M1_l8

say "3  one vector per tract, of both cities with the encoder of M1"
for region in M1 M2; do
    run get_img_embedding.py --data_path demo/data/$region/l8_2020 --model_path demo/ckpt --log M1_l8 --output_path demo/data/$region/l8_M1.csv
done

say "4  the flow model of M1"
run train_ODPrediction.py --log M1_l8_2020 --node_feats_path demo/data/M1/l8_M1.csv --region M1 --year 2020 --max_epochs 60 --lr 0.003 \
    --embedding_size 128 --num_hidden_layers 1 --device auto --data_root demo/data --output_dir demo/outputs \
    --population_path demo/data/M1/population.csv

say "5  the flows of M2, a city whose flows the model never saw"
run test_ODPrediction.py --log M1_l8_2020 --node_feats_path demo/data/M2/l8_M1.csv --region M2 --year 2020 --device auto \
    --data_root demo/data --output_dir demo/outputs

say "result"
run -m imagery2flow results --output_dir demo/outputs --log M1_l8_2020 --data_root demo/data
run -m imagery2flow flow_map --predictions_path demo/outputs/M1_l8_2020/M2_2020/predictions_lightgbm.csv --units_path demo/data/M2/units.gpkg \
    --scene_path demo/data/M2/scene.tif --output_path demo/M2.png
run -m imagery2flow report demo/outputs/M1_l8_2020/M2_2020 --output_path demo/M2.html
cat <<END

The files, below demo/:
  data/<region>/scene.tif, units.gpkg, flows.csv   what a region needs; put your own city beside them
  data/<region>/l8_2020/                           patches, manifest.csv, stats.json
  data/<region>/l8_M1.csv                          the table of vectors
  ckpt/M1_l8_img_25.pth, ..._loss.png              the encoder and its loss
  outputs/M1_l8_2020/                              the flow model, metrics.json, predictions of M1
  outputs/M1_l8_2020/M2_2020/                      predictions and metrics.json of M2
  M2.png                                           M2's imagery, observed and predicted flows
  M2.html                                          the same to click on: opens in a browser
figs.ipynb draws the paper's figures of it.
Done in $((SECONDS - started)) s.
END

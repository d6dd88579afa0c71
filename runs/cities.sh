#!/usr/bin/env bash
# Which city is this, why, what is it like, how does it score: twenty generated cities through every command of docs/cities.md.
# Everything is written below ./demo_cities; about 5 minutes on 2 CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf demo_cities
started=$SECONDS
folds=${FOLDS:-4}

say() { printf '\n== %s\n' "$*"; }
run() { printf '\n$ python %s\n' "$*"; python -W ignore "$@"; }

tiles=demo_cities/tiles/cities/rgb_2020
scenes=(--data_path $tiles --scene_dir demo_cities/raw)
flips=(--views.crop_min_share 1 --views.shift 0 --views.gain 0)
model=demo_cities/ckpt/city_img_15_best.pth

say "0  twenty generated cities of three sites; imagery shows their greenness, and not their random index"
run -m imagery2flow synthetic_cities --output_dir demo_cities --num_cities 20 --size_px 256

say "1  tiles of 64 px every 32 px, which stay windows of their scenes; the last site of each city is for validation and test"
run img_preprocessing.py --mode grid --size 64 --stride 32 --materialize false --input_tif_path demo_cities/raw \
    --output_tif_dir demo_cities/tiles --region cities --tag rgb

say "2  which city is this: a classifier"
run train_img_encoder.py "${scenes[@]}" --objective classify --label_column city --view_size 32 --batch_size 64 --total_epoch 15 --cos "${flips[@]}" \
    --model_path demo_cities/ckpt --log city

say "3  what it says of each tile, and the vectors that it says it from"
run get_img_embedding.py "${scenes[@]}" --ckpt $model --predict --output_path demo_cities/city.csv
run get_img_embedding.py "${scenes[@]}" --ckpt $model --untrained_control false --output_path demo_cities/vectors.csv

say "4  how well it tells them apart, and which are alike"
run -m imagery2flow cities --data_path $tiles --predictions_path demo_cities/city.csv --embeddings_path demo_cities/vectors.csv --top_k 2 \
    --output_dir demo_cities/scores

say "5  why"
run -m imagery2flow explain "${scenes[@]}" --ckpt $model --layers layer1 --tiles_per_city 4 --output_dir demo_cities/explanations

say "6  how does a city score that the model never saw: two indexes, cities left out in $folds folds"
predictions=()
for fold in $(seq 1 "$folds"); do
    run train_img_encoder.py "${scenes[@]}" --objective regress --target_column greenness random --labels_path demo_cities/indexes.csv --labels_key city \
        --held_out_column city --folds "$folds" --fold "$fold" --view_size 32 --batch_size 64 --total_epoch 6 --cos "${flips[@]}" \
        --model_path demo_cities/ckpt --log "index_$fold"
    run get_img_embedding.py "${scenes[@]}" --ckpt "demo_cities/ckpt/index_${fold}_img_6_best.pth" --predict --output_path "demo_cities/index_$fold.csv"
    predictions+=("demo_cities/index_$fold.csv")
done
run -m imagery2flow cities --data_path $tiles --predictions_path "${predictions[@]}" --labels_path demo_cities/indexes.csv --labels_key city \
    --output_dir demo_cities/index_scores

say "7  a map of the greenness of one site, by the model that never saw its city"
held_out=$(python - demo_cities/ckpt/index_1_img_6_run.json <<'PYTHON'
import json
import sys

notes = json.load(open(sys.argv[1]))["ledger"]["notes"]
print(next(note for note in notes if "held out: " in note).split("held out: ")[1].split(", ")[0])
PYTHON
)
run -m imagery2flow map --scene_path "demo_cities/raw/$held_out/site1/image1.tif" --ckpt demo_cities/ckpt/index_1_img_6_best.pth --size 64 --stride 16 \
    --geometry blend --output_path demo_cities/greenness.tif
cat <<END

The files, below demo_cities/:
  raw/<city>/<site>/<image>.tif    the scenes; put your own tree there
  scores/                          confusion, calibration, similarity of cities: tables and figures
  explanations/                    what in a tile the model looked at
  index_scores/                    both indexes in cities that no model saw, beside the mean
  greenness.tif, greenness.png     the index of every place of a scene
Done in $((SECONDS - started)) s.
END

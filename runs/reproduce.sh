#!/usr/bin/env bash
# One metropolitan area of the paper, from its name to its scores: data, five stages with both sensors and both decoders, five folds, transfer to the
# other nine, and the same area in earlier years.
#
#   runs/reproduce.sh M1               # the published recipe: a GPU, days, and some 100 GB for all ten (README)
#   DRY_RUN=1 runs/reproduce.sh M1     # prints the commands and what is there, runs nothing
#
# A step whose result is there is skipped, so that a broken run is started again with the same command; to repeat a step remove its result and those after it.
# Set in the environment: REGIONS (what is transferred to), SENSORS, FOLDS, PAST (earlier years), CONFIGS (folder of the recipe), DATA, CKPT, OUTPUTS,
# LANDSAT (catalogue of Landsat images), ACQUIRE (more flags for acquire).
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# -eq 1 && $1 =~ ^M([1-9]|10)$ ]] || { echo "usage: runs/reproduce.sh M1   (M1 to M10)" >&2; exit 2; }

source=$1
regions=${REGIONS:-M1 M2 M3 M4 M5 M6 M7 M8 M9 M10}
sensors=${SENSORS:-s2 l8}
folds=${FOLDS-1 2 3 4}                        # fold 0 is the model itself
configs=${CONFIGS:-configs/paper}
data=${DATA:-data} ckpt=${CKPT:-ckpt/paper} outputs=${OUTPUTS:-outputs/paper}
landsat=${LANDSAT:-planetary_computer}        # Earth Search keeps Landsat where readers pay
year=2020
case $source in                               # LODES begins in 2004 in Arizona, and in 2010 in the District of Columbia
    M10) past=2010\ 2004 ;;
    M6) past=2010 ;;
    *) past=2010\ 2002 ;;
esac
past=${PAST-$past}
done_before=0 done_now=0

step() {  # step RESULT COMMAND...: runs the command unless its result is there
    local result=$1
    shift
    if [[ -e $result ]]; then
        done_before=$((done_before + 1))
        return
    fi
    printf '\n$ python %s\n' "$*"
    done_now=$((done_now + 1))
    [[ -z ${DRY_RUN:-} ]] || return 0
    python "$@"
    [[ -e $result ]] || { echo "reproduce.sh: error: that command did not write $result" >&2; exit 1; }
}

acquire() {  # acquire REGION RESULT WHAT...
    local region=$1 result=$2
    shift 2
    # shellcheck disable=SC2086  # several flags
    step "$data/$region/$result" -m imagery2flow acquire --config "$configs/$region.yaml" --data_root "$data" ${ACQUIRE:-} --what "$@"
}

imagery() {  # imagery REGION SENSOR YEAR: the image, then its patches
    local region=$1 sensor=$2 when=$3 catalogue=$landsat
    [[ $sensor != s2 ]] || catalogue=earth_search
    acquire "$region" "${sensor}_$when.tif" imagery --sensor "$sensor" --year "$when" --catalogue "$catalogue"
    step "$data/$region/${sensor}_$when/run.json" img_preprocessing.py --input_tif_path "$data/$region/${sensor}_$when.tif" \
        --shp_path "$data/$region/units.gpkg" --output_tif_dir "$data" --region "$region" --year "$when" --tag "$sensor"
}

vectors() {  # vectors REGION SENSOR YEAR ENCODER TABLE
    step "$5.run.json" get_img_embedding.py --config "$configs/get_img_embedding.yaml" --data_path "$data/$1/$2_$3" --model_path "$ckpt" \
        --log "$4" --output_path "$5"
}

test_model() {  # test_model MODEL REGION YEAR TABLE
    step "$outputs/$1/$2_$3/run.json" test_ODPrediction.py --log "$1" --node_feats_path "$4" --region "$2" --year "$3" --data_root "$data" \
        --output_dir "$outputs"
}

targets=$source
for region in $regions; do [[ $region == "$source" ]] || targets+=" $region"; done

for region in $targets; do
    acquire "$region" units.gpkg units
    acquire "$region" flows_$year.csv flows --year $year
    acquire "$region" population.csv population
    acquire "$region" land_cover.csv land_cover --year $year
    for sensor in $sensors; do imagery "$region" "$sensor" $year; done
done

epochs=$(sed -n 's/^total_epoch: *\([0-9]*\).*/\1/p' "$configs/train_img_encoder.yaml")
for sensor in $sensors; do
    name=${source}_$sensor
    step "$ckpt/${name}_img_${epochs}_run.json" train_img_encoder.py --config "$configs/train_img_encoder.yaml" \
        --data_path "$data/$source/${sensor}_$year" --model_path "$ckpt" --log "$name" --resume
    for region in $targets; do vectors "$region" "$sensor" $year "$name" "$data/$region/${sensor}_${year}_$source.csv"; done
    logs=
    for fold in 0 $folds; do
        model=${name}_$year
        [[ $fold == 0 ]] || model+=_fold$fold
        logs+=" $model"
        step "$outputs/$model/run.json" train_ODPrediction.py --config "$configs/train_ODPrediction.yaml" --fold "$fold" --log "$model" \
            --node_feats_path "$data/$source/${sensor}_${year}_$source.csv" --region "$source" --year $year --data_root "$data" \
            --output_dir "$outputs" --population_path "$data/$source/population.csv"
    done
    # shellcheck disable=SC2086  # several names
    [[ -z $folds ]] || step "$outputs/${name}_${year}_folds/run.json" -m imagery2flow folds --logs $logs --log "${name}_${year}_folds" --output_dir "$outputs"
    for region in $regions; do
        [[ $region == "$source" ]] || test_model "${name}_$year" "$region" $year "$data/$region/${sensor}_${year}_$source.csv"
    done
done

# Earlier years: Landsat 5, with the encoder and the flow model of Landsat 8; scored on the origins that the model has not learned from.
if [[ " $sensors " == *" l8 "* ]]; then
    for when in $past; do
        acquire "$source" "flows_$when.csv" flows --year "$when"
        imagery "$source" l5 "$when"
        vectors "$source" l5 "$when" "${source}_l8" "$data/$source/l5_${when}_$source.csv"
        test_model "${source}_l8_$year" "$source" "$when" "$data/$source/l5_${when}_$source.csv"
    done
fi

if [[ -n ${DRY_RUN:-} ]]; then
    printf '\n%d steps are done, %d are left\n' $done_before $done_now
    exit 0
fi
printf '\n%d steps were done before, %d now\n' $done_before $done_now
for sensor in $sensors; do python -m imagery2flow results --log "${source}_${sensor}_$year" --output_dir "$outputs" --data_root "$data"; done
# shellcheck disable=SC2086  # several names
python runs/transfer_matrix.py --output_dir "$outputs" --year $year --regions $targets --tags $sensors

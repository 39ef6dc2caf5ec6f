#!/usr/bin/env bash
# The poster's comparison: a run for every method and seed, then figures and tables. Start it again after a bad day: a
# finished or diverged run is not run twice, one that was cut off goes on, and one with other settings ends it all.
#
#   DATASET=cifar10 MODEL=resnet164 EPOCHS=300 SEEDS="0 1 2" K=4 METHODS="bp dni ddg fr" OUT=outputs/poster \
#       scripts/reproduce_poster.sh [any further settings of fr-bench train]
set -euo pipefail
fr_bench=${FR_BENCH:-fr-bench}
dataset=${DATASET:-cifar10} model=${MODEL:-resnet164} epochs=${EPOCHS:-300} seeds=${SEEDS:-0 1 2} k=${K:-4}
out=${OUT:-outputs/poster-$dataset-$model}

for seed in $seeds; do
    for method in ${METHODS:-bp dni ddg fr}; do
        run=$out/runs/$method-k$k-s$seed
        if grep -qs '"error": "diverged' "$run/status.json"; then
            echo "$run diverged, and is not run again: delete it to try with other settings"
            continue
        fi
        "$fr_bench" train experiment=poster_convergence "dataset=$dataset" "model=$model" "epochs=$epochs" "k=$k" \
            "method=$method" "seed=$seed" "run_dir=$run" "$@" || case $? in
            1) ;; # a run that failed or diverged: the others go on, and the figures show how far it came
            *) exit $? ;;
        esac
    done
done
"$fr_bench" plot "$out/runs" --out "$out/figures"
"$fr_bench" report "$out/runs" --out "$out"

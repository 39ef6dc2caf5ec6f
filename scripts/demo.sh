#!/usr/bin/env bash
# BP, DNI, DDG and FR with K=4 in four processes each on scikit-learn's digits; then figures and a table.
set -euo pipefail
fr_bench=${FR_BENCH:-fr-bench}
out=${OUT:-outputs/demo-$(date +%Y%m%d-%H%M%S)}

"$fr_bench" train -m experiment=quickstart method=fr,bp,ddg,dni epochs=12 log_every=18 "sweep_dir=$out"
"$fr_bench" plot "$out" --out "$out/figures"
"$fr_bench" report "$out"
echo "figures: $out/figures   runs: $out"

#!/usr/bin/env bash
# What fr-bench does on this machine's GPU, in one file: the tests that need one; a short run of every method, with a
# process for each of four modules, whose memory the allocator tells; what every switch brings; the methods side by side.
# If asked for, also four modules with cores of their own, on its CPU, and a training of every method.
# One GPU is enough. Leaves $RESULTS/gpu_check.json, with what there is after every part, should the time run out; exit
# code 1 if anything failed.
#
#   PYTHON=.venv/bin/python RESULTS=outputs/gpu-check PARTS="tests runs switches methods" MODEL=resnet164 \
#       BATCH_SIZE=128 STEPS=40 METHODS="bp dni ddg fr dgl" THREADS=4 TEST_LIMIT=360 RUN_LIMIT=90 BENCH_LIMIT=360 \
#       WORKERS=8 scripts/gpu_check.sh [any further settings of fr-bench train, for the runs and the training]
#   PARTS=cores scripts/gpu_check.sh
#   PARTS=training DATASET=fashion_mnist EPOCHS=4 TRAINING_LIMIT=600 scripts/gpu_check.sh   # the data must be there
#
# ..._LIMIT: seconds for all tests, for each run, and for each bench. WORKERS: so many tests run side by side. THREADS: of
# a module on the CPU. SWITCHES, SIDE_BY_SIDE, CORES: what the benches compare, as in bench.methods. DEVICE=cpu rehearses it
# without a GPU.
set -uo pipefail
python=${PYTHON:-python3} device=${DEVICE:-cuda} methods=${METHODS:-bp dni ddg fr dgl}
model=${MODEL:-resnet164} batch_size=${BATCH_SIZE:-128} parts=${PARTS:-tests runs switches methods}
switches="[plain,bp,'bp cuda_graphs=true','bp cuda_graphs=true channels_last=false','bp precision=tf32',\
'bp precision=tf32 cuda_graphs=true','bp precision=bf16','bp precision=bf16 cuda_graphs=true']"
side_by_side="[bp,'bp cuda_graphs=true','fr cuda_graphs=true','fr cuda_graphs=true streams=false',\
'fr cuda_graphs=true transport=ipc',fr,'ddg cuda_graphs=true','dni cuda_graphs=true','dgl cuda_graphs=true']"
cores="[bp,fr,ddg,'fr partition=measured','ddg partition=measured',ddp,1f1b]"
graphs=true
if [ "$device" = cpu ]; then
    graphs=false
    switches="[plain,bp,'bp channels_last=false']" side_by_side="[bp,fr,'fr transport=gloo']"
fi
for part in $parts; do
    [[ " tests runs switches methods cores training " == *" $part "* ]] && continue
    echo "gpu_check: PARTS has $part; there are: tests runs switches methods cores training" >&2
    exit 2
done
cd "$(dirname "$0")/.." || exit 2
mkdir -p "${RESULTS:-outputs/gpu-check}" || exit 2
results=$(cd "${RESULTS:-outputs/gpu-check}" && pwd)
failed=0

# The process group of a program that is out of time is killed with it: its modules die with their parent.
within() { timeout --signal=TERM --kill-after=10 "$@"; }

report() {
    "$python" - "$results" $methods <<'PYTHON' || failed=1
import json, re, sys
from pathlib import Path
from xml.etree import ElementTree

results, methods = Path(sys.argv[1]), sys.argv[2:]
read = lambda path: json.loads(path.read_text()) if path.exists() else None
tests = {"passed": 0, "failed": [], "skipped": []}
outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}
finished = (results / "tests.xml").exists()
for case in ElementTree.parse(results / "tests.xml").iter("testcase") if finished else ():
    kind = next((outcome[child.tag] for child in case if child.tag in outcome), "passed")
    if kind == "passed":
        tests["passed"] += 1
    else:
        tests[kind].append(f"{case.get('classname')}::{case.get('name')}")
runs = {method: {"status": read(results / method / "status.json"), "summary": read(results / method / "summary.json")} for method in methods}
benches = {name: read(results / name / "bench.json") for name in ("switches", "methods", "cores")}
environments = [read(results / method / "env.json") for method in methods] + [bench and bench["env"] for bench in benches.values()]
environment = next((found for found in environments if found), None)
path = results / "gpu_check.json"
# But for a line that a program out of time had just begun.
lines = lambda path: map(json.loads, re.findall(r"^\{.*\}$", path.read_text(), re.M)) if path.exists() else ()
training = {
    method: {
        "summary": read(results / "training" / method / "summary.json"),
        "evaluations": [record for record in lines(results / "training" / method / "metrics.jsonl") if record["kind"] == "eval"],
    }
    for method in methods
}
content = {"env": environment, "tests": tests if finished else None, "runs": runs, **benches, "training": training}
path.write_text(json.dumps(content, indent=1) + "\n")
states = ", ".join(f"{method} {(run['status'] or {}).get('state', 'not begun')}" for method, run in runs.items())
ended = f"{tests['passed']} tests passed, {len(tests['failed'])} failed, {len(tests['skipped'])} skipped" if finished else "tests: not ended"
rows = ", ".join(f"{name}: {len(bench['rows']) if bench else 0} rows" for name, bench in benches.items())
print(f"{ended}; {states}; {rows}; {path}")
PYTHON
}

bench() { # name, K, methods, further settings
    rm -rf "${results:?}/$1"
    within "${BENCH_LIMIT:-360}" "$python" -m fr_bench bench "model=$model" "batch_size=$batch_size" "bench.k=$2" \
        "bench.methods=$3" "run_dir=$results/$1" "${@:4}" || failed=1
    report
}

for part in $parts; do
    case $part in
    tests)
        rm -f "$results/tests.xml"
        FR_BENCH_GPU_TESTS_ON=$device within "${TEST_LIMIT:-360}" "$python" -m pytest -q tests/gpu \
            -n "${WORKERS:-8}" -o timeout=120 --maxfail=20 --junitxml="$results/tests.xml" || failed=1
        report
        ;;
    runs)
        for method in $methods; do
            rm -rf "${results:?}/$method"
            within "${RUN_LIMIT:-90}" "$python" -m fr_bench train "method=$method" "model=$model" k=4 \
                "batch_size=$batch_size" dataset=synthetic "device=$device" "max_steps=${STEPS:-40}" transport=ipc \
                resume=never console=off wandb.mode=disabled "run_dir=$results/$method" "$@" || failed=1
            report
        done
        ;;
    switches) bench switches '[1]' "${SWITCHES:-$switches}" "device=$device" ;;
    methods) bench methods '[1,4]' "${SIDE_BY_SIDE:-$side_by_side}" "device=$device" ;;
    training)
        rm -rf "${results:?}/training"
        for method in $methods; do
            within "${TRAINING_LIMIT:-600}" "$python" -m fr_bench train "method=$method" "model=$model" k=4 \
                "batch_size=$batch_size" "dataset=${DATASET:-fashion_mnist}" "epochs=${EPOCHS:-4}" "device=$device" \
                "cuda_graphs=$graphs" console=plain wandb.mode=disabled "run_dir=$results/training/$method" "$@" || failed=1
            report
        done
        "$python" -m fr_bench plot "$results"/training/* --out "$results/training/figures" || failed=1
        ;;
    cores) bench cores '[1,4]' "${CORES:-$cores}" device=cpu "threads=${THREADS:-4}" bench.rounds=1 bench.steps=12 ;;
    esac
done
exit $failed

#!/usr/bin/env bash
# What fr-bench does on this machine's GPU, in one file: a short run of every method whose four modules share it, then
# the tests that need one. One GPU is enough. Leaves $RESULTS/gpu_check.json, with what there is after every part, should
# the time run out; exit code 1 if anything failed.
#
#   PYTHON=.venv/bin/python RESULTS=outputs/gpu-check MODEL=resnet164 DATASET=synthetic STEPS=40 \
#       METHODS="bp dni ddg fr" RUN_LIMIT=90 TEST_LIMIT=360 WORKERS=4 \
#       scripts/gpu_check.sh [any further settings of fr-bench train]
#
# RUN_LIMIT and TEST_LIMIT: seconds for each run, and for all tests. WORKERS: so many tests run side by side.
# DEVICE=cpu rehearses it where there is no GPU.
set -uo pipefail
python=${PYTHON:-python3} device=${DEVICE:-cuda} methods=${METHODS:-bp dni ddg fr}
cd "$(dirname "$0")/.." || exit 2
mkdir -p "${RESULTS:-outputs/gpu-check}" || exit 2
results=$(cd "${RESULTS:-outputs/gpu-check}" && pwd)
rm -f "$results/tests.xml" "$results/gpu_check.json"
failed=0

# The process group of a program that is out of time is killed with it: its modules die with their parent.
within() { timeout --signal=TERM --kill-after=10 "$@"; }

report() {
    "$python" - "$results" $methods <<'PYTHON' || failed=1
import json, sys
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
environment = next((found for method in methods if (found := read(results / method / "env.json"))), None)
path = results / "gpu_check.json"
path.write_text(json.dumps({"env": environment, "tests": tests if finished else None, "runs": runs}, indent=1) + "\n")
states = ", ".join(f"{method} {(run['status'] or {}).get('state', 'not begun')}" for method, run in runs.items())
ended = f"{tests['passed']} tests passed, {len(tests['failed'])} failed, {len(tests['skipped'])} skipped" if finished else "tests: not ended"
print(f"{states}; {ended}; {path}")
PYTHON
}

for method in $methods; do
    rm -rf "${results:?}/$method"
    within "${RUN_LIMIT:-90}" "$python" -m fr_bench train "method=$method" "model=${MODEL:-resnet164}" \
        "dataset=${DATASET:-synthetic}" k=4 "device=$device" "max_steps=${STEPS:-40}" transport=ipc resume=never \
        console=off wandb.mode=disabled "run_dir=$results/$method" "$@" || failed=1
    report
done
FR_BENCH_GPU_TESTS_ON=$device within "${TEST_LIMIT:-360}" "$python" -m pytest -q tests/gpu -n "${WORKERS:-4}" \
    -o timeout=120 --maxfail=10 --junitxml="$results/tests.xml" || failed=1
report
exit $failed

#!/usr/bin/env bash
# What fr-bench does on this machine's GPU, in one file: the tests that need one, and a short run of every method whose
# four modules share it. One GPU is enough. Leaves $OUT/gpu_check.json; exit code 1 if anything failed.
#
#   PYTHON=.venv/bin/python OUT=outputs/gpu-check MODEL=resnet164 DATASET=synthetic STEPS=40 METHODS="bp dni ddg fr" \
#       scripts/gpu_check.sh [any further settings of fr-bench train]
#
# DEVICE=cpu rehearses it where there is no GPU.
set -euo pipefail
python=${PYTHON:-python3} device=${DEVICE:-cuda} out=${OUT:-outputs/gpu-check}
cd "$(dirname "$0")/.."
mkdir -p "$out"
failed=0
FR_BENCH_GPU_TESTS_ON=$device "$python" -m pytest -q tests/gpu --junitxml="$out/tests.xml" || failed=1
for method in ${METHODS:-bp dni ddg fr}; do
    "$python" -m fr_bench train "method=$method" "model=${MODEL:-resnet164}" "dataset=${DATASET:-synthetic}" k=4 \
        "device=$device" "max_steps=${STEPS:-40}" transport=ipc resume=never console=off wandb.mode=disabled \
        "run_dir=$out/$method" "$@" || failed=1
done
"$python" - "$out" ${METHODS:-bp dni ddg fr} <<'PYTHON'
import json, sys
from pathlib import Path
from xml.etree import ElementTree

out, methods = Path(sys.argv[1]), sys.argv[2:]
cases = list(ElementTree.parse(out / "tests.xml").iter("testcase"))
outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}
tests = {"passed": 0, "failed": [], "skipped": []}
for case in cases:
    kind = next((outcome[child.tag] for child in case if child.tag in outcome), "passed")
    if kind == "passed":
        tests["passed"] += 1
    else:
        tests[kind].append(f"{case.get('classname')}::{case.get('name')}")
read = lambda path: json.loads(path.read_text()) if path.exists() else None
runs = {method: {"status": read(out / method / "status.json"), "summary": read(out / method / "summary.json")} for method in methods}
environment = next((found for method in methods if (found := read(out / method / "env.json"))), None)
path = out / "gpu_check.json"
path.write_text(json.dumps({"env": environment, "tests": tests, "runs": runs}, indent=1) + "\n")
print(f"{tests['passed']} tests passed, {len(tests['failed'])} failed, {len(tests['skipped'])} skipped; {path}")
PYTHON
exit $failed

#!/bin/sh
# The main job on a small dataset: write it, ingest it with Dagster, load it, score it.
# Leaves .env, which points this checkout at the demo's data; `make clean` removes it all.
set -eu
bin="$1"
. "$bin/activate"
root="$(pwd)/.demo"

if [ -f .env ] && ! grep -qF "$root" .env; then
    echo "demo: .env is yours and points elsewhere; move it away to run the demo" >&2
    exit 1
fi
cat > .env <<LINES
# Written by make demo: this checkout works on the demo's data. Remove with make clean.
STUDIO_ROOT=$root/studio
OLMOEARTH_EVAL_DATASETS=$root/eval_datasets
EVAL_INGEST_STUDIO_ROOTS=$root/studio
LINES
unset STUDIO_ROOT OLMOEARTH_EVAL_DATASETS EVAL_INGEST_CATALOG EVAL_INGEST_STUDIO_ROOTS

echo "== 1. A small rslearn dataset, as Studio writes them"
python -m eval_ingest.testing.demo --root "$root/studio"

echo
echo "== 2. dagster asset materialize --select tolbi_crops"
mkdir -p "$root"
if ! dagster asset materialize --select tolbi_crops > "$root/dagster.log" 2>&1; then
    grep -E "ERROR|Failure|Error" "$root/dagster.log" | head -20 >&2
    echo "demo: the ingest failed; all of Dagster's output is in $root/dagster.log" >&2
    exit 1
fi
grep -oE "(tolbi_crops|window_index|split_assignment|norm_stats|weka_copy|registry_entry): .*" "$root/dagster.log" || true

echo
echo "== 3. What was registered"
eval-ingest info --name tolbi_crops

echo
echo "== 4. What training code does"
code='from eval_ingest import EvalDataset
val = EvalDataset("tolbi_crops", split="val")
batch = next(val.batches(16))'
echo "$code" | sed 's/^/  >>> /'
python - <<PY
import time, torch
from eval_ingest.loading import EvalDataset
started = time.perf_counter()
$code
print(f"  opened, and one batch made, in {(time.perf_counter() - started) * 1000:.0f} ms:")
for key in ("sentinel2_l2a", "target"):
    print(f"    {key:<14} {str(batch[key].dtype).removeprefix('torch.'):<8} {tuple(batch[key].shape)}")
PY

echo
echo "== 5. A first score"
python -m eval_ingest.testing.demo --score

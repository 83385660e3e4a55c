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
{
    echo "# Written by make demo: this checkout works on the demo's data. Remove with make clean."
    for pair in STUDIO_ROOT=studio OLMOEARTH_EVAL_DATASETS=eval_datasets EVAL_INGEST_STUDIO_ROOTS=studio; do
        # What is exported wins, for Dagster's commands too.
        echo "${pair%%=*}=\${${pair%%=*}:-$root/${pair#*=}}"
    done
} > .env
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
eval-ingest info tolbi_crops

echo
echo "== 4. What training code does"
code='from eval_ingest import EvalDataset
val = EvalDataset("tolbi_crops", split="val")
batch = next(val.batches(8))'
echo "$code" | sed 's/^/  >>> /'
python - <<PY
import time, torch
from eval_ingest.loading import EvalDataset
started = time.perf_counter()
$code
print(f"  opened, and one batch made, in {(time.perf_counter() - started) * 1000:.0f} ms:")
for key, axes in (("sentinel2_l2a", "8 samples, H, W, T, bands"), ("target", "8 samples, H, W")):
    kind = str(batch[key].dtype).removeprefix("torch.")
    print(f"    {key:<14} {kind:<8} {tuple(batch[key].shape)}  {axes}")
print("  a sample is the crop of 16 pixels that model.yaml trains on; crop=None gives all 64")
PY

echo
echo "== 5. A first score"
echo "$ eval-ingest sweep --encoder pixels --datasets tolbi_crops --no-plots"
eval-ingest sweep --encoder pixels --datasets tolbi_crops --no-plots

cat <<NEXT

Next, in this folder:
  . $bin/activate
  eval-ingest list                                what there is
  dagster asset materialize --select tolbi_crops  says that nothing is to be done
  dagster dev                                     in a browser: http://127.0.0.1:3000
  eval-ingest ingest crops --source PATH_OR_URL   a dataset of yours
  make clean                                      removes the demo
NEXT

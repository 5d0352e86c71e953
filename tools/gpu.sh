#!/bin/sh
# On a machine with a CUDA GPU: the tests marked `gpu`, then every benchmark suite; log and JSON in $GPU_OUT.
# Uses the Python that has torch and DALI (PYTHON, default python3); needs no network. Ends within 19 minutes.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${GPU_OUT:-runs/gpu}
mkdir -p "$OUT"
status=0
note() { echo "== $*" | tee -a "$OUT/gpu.log"; }

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; print(torch.cuda.get_device_name())' \
  2>&1 | tee -a "$OUT/gpu.log"
note "tests"
timeout 180 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider --durations=5 >"$OUT/tests.log" 2>&1 || status=1
tail -n 15 "$OUT/tests.log"
for suite in loss jigsaw step input train scaling; do
  note "bench $suite"
  timeout 150 "$PYTHON" tools/bench.py "$suite" --device cuda --index-samples 1000000 --json "$OUT/$suite.json" >"$OUT/$suite.log" 2>&1 || status=1
  tail -n 12 "$OUT/$suite.log"
done
if command -v compute-sanitizer >/dev/null; then
  note "compute-sanitizer"
  timeout 50 compute-sanitizer --error-exitcode 99 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider -k "33 and gpu" \
    tests/test_views_kernel.py >"$OUT/sanitizer.log" 2>&1
  [ $? -eq 99 ] && status=1
  tail -n 3 "$OUT/sanitizer.log"
fi
note "exit code $status"
exit $status

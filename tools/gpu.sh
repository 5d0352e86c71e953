#!/bin/sh
# On a machine with a CUDA GPU: the tests marked `gpu`, then every benchmark suite; log and JSON in $GPU_OUT.
# Uses the Python that has torch and DALI (PYTHON, default python3); needs no network. Ends within 28 minutes; GPU_RUN
# takes some of the parts, as in GPU_RUN="tests loss jigsaw".
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${GPU_OUT:-runs/gpu}
RUN=${GPU_RUN:-tests loss jigsaw step input train scaling sanitizer}
mkdir -p "$OUT"
status=0
note() { echo "== $*" | tee -a "$OUT/gpu.log"; }

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; print(torch.cuda.get_device_name())' \
  2>&1 | tee -a "$OUT/gpu.log"
for part in $RUN; do
  note "$part"
  case $part in
  tests)
    timeout 240 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider --durations=5 >"$OUT/$part.log" 2>&1 || status=1
    ;;
  sanitizer)
    command -v compute-sanitizer >/dev/null || { note "no compute-sanitizer on the PATH"; continue; }
    timeout 50 compute-sanitizer --error-exitcode 99 "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider \
      -k "33 and gpu" tests/test_fan_out.py >"$OUT/$part.log" 2>&1
    [ $? -eq 99 ] && status=1
    ;;
  *)
    limit=150
    case $part in train | scaling) limit=400 ;; esac
    timeout $limit "$PYTHON" tools/bench.py "$part" --device cuda --index-samples 1000000 --json "$OUT/$part.json" \
      >"$OUT/$part.log" 2>&1 || status=1
    ;;
  esac
  tail -n 15 "$OUT/$part.log"
done
note "exit code $status"
exit $status

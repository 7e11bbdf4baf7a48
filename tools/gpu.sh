#!/usr/bin/env bash
# Runs everything that needs a CUDA device: reports what can run here, then runs the tests of the kernels, the demo and
# the GPU benchmarks, whose results go to benchmarks/results under the device's name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_env.sh

python - <<'PY' || fail "PyTorch sees no CUDA device here: $(python -c 'import torch; print("torch", torch.__version__)')"
import sys, torch
sys.exit(not torch.cuda.is_available())
PY

status=0
run() {
    echo "== $*"
    "$@" || status=1
}
run pagedvid env
run python -m pytest -q tests/attention tests/engine/test_demo_on_gpu.py
run pagedvid generate --prompts configs/demo_prompts.txt --out outputs/demo_cuda --overwrite --set model.device=cuda
run python benchmarks/attention.py --device cuda
run python benchmarks/commit.py --device cuda
exit "$status"

#!/usr/bin/env bash
# Checks and measures what needs a CUDA device, within six minutes: bash tools/gpu.sh [FOLDER]
# Results go to FOLDER, or $OUT, or outputs/gpu. Where the machine's own python3 sees a device nothing is installed: it
# needs torch, triton, numpy, pyyaml, safetensors, pillow, pytest and hypothesis, and no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sees_a_device() {
    "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null
}

python=python3
if ! sees_a_device python3; then
    source tools/setup_env.sh
    python=python
    sees_a_device python ||
        fail "PyTorch sees no CUDA device here: $(python -c 'import torch; print("torch", torch.__version__)')"
fi
exec "$python" tools/device_checks.py "$@"

#!/usr/bin/env bash
# Generates the demo videos in outputs/demo. Sets itself up the first time. Arguments go to `pagedvid generate`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_env.sh

exec pagedvid generate --prompts configs/demo_prompts.txt --out outputs/demo --overwrite "$@"

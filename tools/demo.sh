#!/usr/bin/env bash
# Generates shapes in outputs/demo and walks in outputs/walk with the built-in models. Sets itself up the first time.
# Arguments go to `pagedvid generate`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_env.sh

pagedvid generate --prompts configs/demo_prompts.txt --out outputs/demo --overwrite "$@"
pagedvid generate --model walk --prompts configs/walk_demo.txt --frames 42 --out outputs/walk --overwrite "$@"

#!/usr/bin/env bash
# Runs a command on the GPUs of this host, and starts it again when it was preempted and saved (exit code 42).
#
# Usage: launch/gpu.sh [OPTIONS] -- COMMAND...
#   --gpus LIST     which GPUs, as in 0,2,3; by default CUDA_VISIBLE_DEVICES, or all
#   --per-gpu       one process a GPU; by default one process has all of them
#   --restart N     start again up to N times; 100 by default. COMMAND should say --resume
#   --dry-run       print what would be run
#
#   launch/gpu.sh -- kdist train configs/char_lm.py --run-dir runs/lm --resume
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

gpus=${CUDA_VISIBLE_DEVICES:-} per_gpu=false restart=100
options 'gpus= per-gpu restart=' "$@"
set -- "${rest[@]}"
[[ ${1:-} == -- && $# -gt 1 ]] || fail "what to run is missing: gpu.sh -- COMMAND" 2
check --restart "$restart" '[0-9]+'
[[ -z $gpus ]] || check --gpus "$gpus" '[A-Za-z0-9_/-]+(,[A-Za-z0-9_/-]+)*'

launch=(kdist launch --platform cuda --restart "$restart")
if $per_gpu; then
    if [[ -z $gpus ]]; then
        command -v nvidia-smi >/dev/null || fail "nvidia-smi, which counts the GPUs, is not there: give --gpus"
        gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd, -)
        [[ -n $gpus ]] || fail "nvidia-smi finds no GPU"
    fi
    commas=${gpus//[^,]/}
    launch+=(-n $((${#commas} + 1)) --devices 1)
else
    launch+=(-n 1)
fi
[[ -z $gpus ]] || launch=(env "CUDA_VISIBLE_DEVICES=$gpus" "${launch[@]}")
if $dry_run; then run "${launch[@]}" "$@"; else exec "${launch[@]}" "$@"; fi

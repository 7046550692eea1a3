#!/usr/bin/env bash
# Everything that waits for a GPU, in one command and about nine minutes; see README.md beside this file.
#
#     benchmarks/gpu_check.sh                        # on a machine with a CUDA device
#     benchmarks/gpu_check.sh --only benchmark       # one part; the names are in README.md
#     benchmarks/gpu_check.sh --emulated             # runs through without a device; measures nothing
#
# Nothing is installed. PYTHON names the interpreter (python3 otherwise); packages elsewhere come by PYTHONPATH.
set -u
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$checkout/src:$checkout/tests:$checkout${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
cd "$checkout" && exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"

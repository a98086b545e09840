#!/usr/bin/env bash
# All that waits for a machine with a GPU, in one call that leaves one file; its options are those of benchmarks/gpu_test.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu_test "$@"

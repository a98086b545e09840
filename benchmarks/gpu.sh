#!/usr/bin/env bash
# Everything that needs a GPU, in one call that leaves one file; the options are those of benchmarks/gpu.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"

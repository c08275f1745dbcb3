#!/usr/bin/env bash
# Everything that a GPU can say of fastnn, in ten minutes: docs/gpu_day.md.
#   benchmarks/gpu_day.sh --out DIR              on the GPU that is found
#   benchmarks/gpu_day.sh --out DIR --dry-run    the same on the CPU, in a small form
#   benchmarks/gpu_day.sh keep DIR               afterwards: its benchmarks among the records of benchmarks/results
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-}"
if [ -z "$python" ]; then
  # Where there is a GPU, the Python that has a CUDA build of torch; else the one that `make build` made.
  if command -v nvidia-smi >/dev/null && python3 -c 'import torch, sys; sys.exit(torch.version.cuda is None)' 2>/dev/null; then
    python=python3
  elif [ -x "$root/.venv/bin/python" ]; then
    python="$root/.venv/bin/python"
  else
    python=python3
  fi
fi
export PYTHONPATH="$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
if [ "${1:-}" = keep ]; then
  export PYTHONPATH="$PYTHONPATH:$root"
  exec "$python" -m gpu_day.keep "${@:2}"
fi
# exec: a signal that is meant for the script reaches what can end cleanly.
exec "$python" -m gpu_day "$@"

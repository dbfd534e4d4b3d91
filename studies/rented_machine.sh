#!/usr/bin/env bash
# Sets a rented GPU machine up: environment, corpus, conformance on its GPUs. Run it again after an interruption: what is
# there stays. docs/tonight.md says what comes next, how long it takes and what it costs.
#
#   bash studies/rented_machine.sh              # sp1024, 10 training shards (2 GB)
#   SHARDS=80 VARIANT=sp8192 bash studies/rented_machine.sh
#   DRY_RUN=1 bash studies/rented_machine.sh    # says what it would do
set -euo pipefail
cd "$(dirname "$0")/.."

SHARDS=${SHARDS:-10}
VARIANT=${VARIANT:-sp1024}

fail() {
    echo "error: $*" >&2
    exit 2
}

step() {
    echo "+ $*"
    [ -n "${DRY_RUN:-}" ] || "$@"
}

case $SHARDS in '' | *[!0-9]* | 0) fail "SHARDS must be a positive number, but got '$SHARDS'." ;; esac
needed_gb=$((20 + SHARDS / 5)) # PyTorch and its caches, then 0.2 GB a shard
command -v nvidia-smi >/dev/null || fail "A GPU machine has nvidia-smi on its PATH, but this one has not. Take an image with the NVIDIA driver."
gpus=$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)
[ "$gpus" -gt 0 ] || fail "nvidia-smi names no GPU. Rent a machine with one."
free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1000000) }')
[ "$free" -ge "$needed_gb" ] || fail "$needed_gb GB of disk are needed here, but $free are free. Take a larger disk, or fewer SHARDS."

step make install
step .venv/bin/python -m corpus download --variant "$VARIANT" --train-shards "$SHARDS"
step .venv/bin/python validate.py --device cuda --workers "$((gpus + 1))"
echo "$gpus GPUs, ready. Next: docs/tonight.md, or .venv/bin/python search.py --study studies/one_gpu.toml --trials 96"

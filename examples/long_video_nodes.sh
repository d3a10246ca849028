#!/bin/sh
# A long video over several machines: run this on each of them, with the same arguments and HEAD.
#
#   HEAD=10.0.0.1 NODES=2 GPUS=8 examples/long_video_nodes.sh MODEL --prompt "a lighthouse in a storm" \
#       --frames 2305 --out /shared/storm.mp4 --checkpoint /shared/storm.run
#
# HEAD is the address of the first machine. /shared must be one disk that all of them see. Where a machine has several
# networks, choose one with NCCL_SOCKET_IFNAME (GLOO_SOCKET_IFNAME without GPUs). Up to RESTARTS times, everything is
# started again after a failure and goes on at the last checkpoint; the variable below keeps torchrun from handing the
# addresses of processes that have ended to the new ones.
set -eu
: "${HEAD:?set HEAD to the address of the first machine}"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
    --nnodes "${NODES:-2}" \
    --nproc-per-node "${GPUS:-8}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD:${PORT:-29400}" \
    --rdzv-id "${JOB:-hasten-video}" \
    --max-restarts "${RESTARTS:-3}" \
    --no-python hasten video "$@"

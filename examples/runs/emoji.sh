#!/usr/bin/env bash
# Emoji 32 -> 128: 1,249 colour emoji of 8 Unicode groups. Results and pictures: docs/results.md.
# DATA holds emoji128-train.zip and emoji128-val.zip. Activate .venv first. The two stages train beside each other, one
# core each of a 2-core machine (bf16), in about a quarter of an hour.
set -euo pipefail
DATA=${DATA:?folder with emoji128-train.zip and emoji128-val.zip}
RUN=${CDM_RUNS:-runs}/emoji
TRAIN=("$DATA/emoji128-train.zip" --val "$DATA/emoji128-val.zip" --flip --threads 1)

cdm train "${TRAIN[@]}" --out "$RUN" --stage 0 --images 80000 &
stage1=$!
cdm train "${TRAIN[@]}" --out "$RUN-sr" --stage 1 --images 40000 &
stage2=$!
wait "$stage1"
wait "$stage2"
cp -r "$RUN-sr/1-128" "$RUN/"
cdm train "${TRAIN[@]}" --out "$RUN" --stage 1 --images 40000  # it is trained: samples and report of the whole
cdm evaluate "$RUN" --data "$DATA/emoji128-val.zip" -n 512 --out "$RUN/evaluation"

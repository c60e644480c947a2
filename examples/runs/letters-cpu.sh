#!/usr/bin/env bash
# Letters 16 -> 64 on a 2-core machine (bf16): the two stages beside each other, one core each, in under an hour.
# DATA holds glyphs64-train.zip and glyphs64-val.zip. Activate .venv first. Then letters-judge.sh. On a GPU: letters-gpu.sh.
set -euo pipefail
DATA=${DATA:?folder with glyphs64-train.zip and glyphs64-val.zip}
RUN=${CDM_RUNS:-runs}/letters
TRAIN=("$DATA/glyphs64-train.zip" --threads 1)

cdm train "${TRAIN[@]}" --out "$RUN" --stage 0 --images 340000 &
stage1=$!
cdm train "${TRAIN[@]}" --out "$RUN-sr" --stage 1 --images 110000 &
stage2=$!
wait "$stage1"
wait "$stage2"
cp -r "$RUN-sr/1-64" "$RUN/"
cdm train "${TRAIN[@]}" --out "$RUN" --stage 1 --images 110000  # it is trained: samples and report of the whole

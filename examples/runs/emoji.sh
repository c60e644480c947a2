#!/usr/bin/env bash
# Emoji 32 -> 128: 1,249 colour emoji of 8 Unicode groups. Results and pictures: docs/results.md.
# DATA holds emoji128-train.zip and emoji128-val.zip. Activate .venv first. Training took about 30 minutes in all of one
# core of a 2-core machine (bf16), which was busy with other work.
set -euo pipefail
DATA=${DATA:?folder with emoji128-train.zip and emoji128-val.zip}
RUN=${CDM_RUNS:-runs}/emoji

cdm train "$DATA/emoji128-train.zip" --val "$DATA/emoji128-val.zip" --out "$RUN" --flip --stage 0 --images 60000 --threads 1
cdm train "$DATA/emoji128-train.zip" --val "$DATA/emoji128-val.zip" --out "$RUN" --flip --stage 1 --images 40000 --threads 1
cdm sample "$RUN" -n 4 --seed 1

#!/usr/bin/env bash
# Letters 16 -> 64: about 630 open font families, 26 classes. Results and pictures: docs/results.md.
# DATA holds glyphs64-train.zip and glyphs64-val.zip. Activate .venv first. The two stages train beside each other, one
# core each, in under an hour on a 2-core machine (bf16).
set -euo pipefail
DATA=${DATA:?folder with glyphs64-train.zip and glyphs64-val.zip}
RUN=${CDM_RUNS:-runs}/letters
TRAIN=("$DATA/glyphs64-train.zip" --threads 1)

cdm train "${TRAIN[@]}" --out "$RUN" --stage 0 --images 340000 &
cdm train "${TRAIN[@]}" --out "$RUN-sr" --stage 1 --images 150000 &
wait
cp -r "$RUN-sr/1-64" "$RUN/"
cdm train "${TRAIN[@]}" --out "$RUN" --stage 1 --images 150000  # it is trained: samples and report of the whole

# the numbers: a ResNet that reads letters, then all of docs/results.md; the default sampler, and the ancestral one
JUDGE=("$RUN" --judge "$RUN/judge.safetensors" --data-train "$DATA/glyphs64-train.zip" --data-val "$DATA/glyphs64-val.zip")
python examples/judge_letters.py train-judge "$DATA/glyphs64-train.zip" "$DATA/glyphs64-val.zip" --out "$RUN/judge.safetensors"
python examples/judge_letters.py judge "${JUDGE[@]}" -n 100 --aug-level 0.1 --out "$RUN/judged.json"
python examples/judge_letters.py judge "${JUDGE[@]}" -n 100 --n-collapse 0 --aug-level 0.1 --sampler ddpm --steps 64 32 \
  --out "$RUN/judged-ancestral.json"
python examples/export_small.py "$RUN" examples/letters

#!/usr/bin/env bash
# Letters 16 -> 64: about 630 open font families, 26 classes. Results and pictures: docs/results.md.
# DATA holds glyphs64-train.zip and glyphs64-val.zip. Activate .venv first. The two stages train beside each other, one
# core each, in under an hour on a 2-core machine (bf16).
set -euo pipefail
DATA=${DATA:?folder with glyphs64-train.zip and glyphs64-val.zip}
RUN=${CDM_RUNS:-runs}/letters
TRAIN=("$DATA/glyphs64-train.zip" --threads 1)

cdm train "${TRAIN[@]}" --out "$RUN" --stage 0 --images 340000 &
cdm train "${TRAIN[@]}" --out "$RUN-sr" --stage 1 --images 110000 &
wait
cp -r "$RUN-sr/1-64" "$RUN/"
cdm train "${TRAIN[@]}" --out "$RUN" --stage 1 --images 110000  # it is trained: samples and report of the whole

# the weights that come with the code: the wider EMA profile, in bf16
python examples/export_small.py "$RUN" examples/letters 0.100

# the numbers: a ResNet that reads letters, then all of docs/results.md; the default sampler, and the ancestral one
JUDGE=(examples/letters --judge "$RUN/judge.safetensors" --aug-level 0.1 -n 100
  --data-train "$DATA/glyphs64-train.zip" --data-val "$DATA/glyphs64-val.zip")
python examples/judge_letters.py train-judge "$DATA/glyphs64-train.zip" "$DATA/glyphs64-val.zip" --out "$RUN/judge.safetensors"
python examples/judge_letters.py judge "${JUDGE[@]}" --out benchmarks/results/letters-judged.json
python examples/judge_letters.py judge "${JUDGE[@]}" --n-collapse 0 --sampler ddpm --steps 160 32 \
  --out benchmarks/results/letters-judged-ancestral.json

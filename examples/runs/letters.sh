#!/usr/bin/env bash
# Letters 16 -> 64: about 630 open font families, 26 classes. Results and pictures: docs/results.md.
# DATA holds glyphs64-train.zip and glyphs64-val.zip. Activate .venv first. Training took 58 minutes in all of one core of
# a 2-core machine (bf16), which was busy with other work: 28 for the base, 16 for the SR stage, 15 for the extension.
set -euo pipefail
DATA=${DATA:?folder with glyphs64-train.zip and glyphs64-val.zip}
RUN=${CDM_RUNS:-runs}/letters

cdm train "$DATA/glyphs64-train.zip" --out "$RUN" --stage 0 --images 150000 --threads 1
cdm train "$DATA/glyphs64-train.zip" --out "$RUN" --stage 1 --images 70000 --threads 1
# the base could be better, so it was extended; the learning rate rises again and decays anew
cdm train "$DATA/glyphs64-train.zip" --out "$RUN" --stage 0 --images 245000 --threads 1

# the numbers: a ResNet that reads letters, then all of docs/results.md
python examples/judge_letters.py train-judge "$DATA/glyphs64-train.zip" "$DATA/glyphs64-val.zip" --out "$RUN/judge.safetensors"
python examples/judge_letters.py judge "$RUN" --judge "$RUN/judge.safetensors" \
  --data-train "$DATA/glyphs64-train.zip" --data-val "$DATA/glyphs64-val.zip" -n 100 --aug-level 0.1 --out "$RUN/judged.json"
python examples/export_small.py "$RUN" examples/letters

#!/usr/bin/env bash
# Letters 16 -> 64: about 630 open font families, 26 classes. Results and pictures: docs/results.md.
# DATA holds glyphs64-train.zip and glyphs64-val.zip. Both stages together took under 60 minutes of a 2-core machine.
set -euo pipefail
DATA=${DATA:?folder with glyphs64-train.zip and glyphs64-val.zip}
RUN=${CDM_RUNS:-runs}/letters

cdm train "$DATA/glyphs64-train.zip" --out "$RUN" --stage 0 --images 150000 --threads 1
cdm train "$DATA/glyphs64-train.zip" --out "$RUN" --stage 1 --images 70000 --threads 1

# the numbers: a ResNet that reads letters, then all of docs/results.md
python examples/judge_letters.py train-judge "$DATA/glyphs64-train.zip" "$DATA/glyphs64-val.zip" --out "$RUN/judge.safetensors"
python examples/judge_letters.py judge "$RUN" --judge "$RUN/judge.safetensors" \
  --data-train "$DATA/glyphs64-train.zip" --data-val "$DATA/glyphs64-val.zip" -n 100 --out "$RUN/judged.json"
python examples/export_small.py "$RUN" examples/letters

#!/usr/bin/env bash
# After letters-gpu.sh or letters-cpu.sh: the small cascade to share, and its numbers. Results and pictures: docs/results.md.
set -euo pipefail
DATA=${DATA:?folder with glyphs64-train.zip and glyphs64-val.zip}
RUN=${CDM_RUNS:-runs}/letters

# the weights that come with the code: the wider EMA profile, in bf16
python examples/export_small.py "$RUN" examples/letters 0.100

# a ResNet that reads letters judges the default sampler, and the ancestral one
JUDGE=(examples/letters --judge "$RUN/judge.safetensors" --aug-level 0.1 -n 100
  --data-train "$DATA/glyphs64-train.zip" --data-val "$DATA/glyphs64-val.zip")
python examples/judge_letters.py train-judge "$DATA/glyphs64-train.zip" "$DATA/glyphs64-val.zip" --out "$RUN/judge.safetensors"
python examples/judge_letters.py judge "${JUDGE[@]}" --out benchmarks/results/letters-judged.json
python examples/judge_letters.py judge "${JUDGE[@]}" --sampler ddpm --steps 160 32 --out benchmarks/results/letters-judged-ancestral.json

cdm evaluate examples/letters --data "$DATA/glyphs64-val.zip" --train-data "$DATA/glyphs64-train.zip" -n 2600 --out "$RUN/evaluation"

#!/usr/bin/env bash
# All that is measured on a GPU, in under 8 minutes:
#     GUIDED=PATH DATA=VAL.zip TRAIN=TRAIN.zip bash benchmarks/gpu.sh [FOLDER]    # paths from the repository's root
# Needs Python 3.11 with torch for the GPU, pytest and beside them what pyproject.toml asks for (PYTHON names it); cdm is
# taken from src/. GUIDED is a checkout of guided-diffusion; DATA and TRAIN are real letters, kept from training and
# trained on. Without them their parts are skipped. diffusers, denoising-diffusion-pytorch and imagen-pytorch are measured
# where they are installed; --compile needs a C compiler. Results go to FOLDER (runs/gpu) as soon as they are there: a
# part that is out of time keeps what it has, and goes on from there when called again. Throughput is three parts and one
# result, a net each; of the peers' forms by torch.compile, which take half a minute each, only diffusers' with the
# middle one. Exits 1 if a part failed; the others run all the same. TOY=1 does little of each, on a
# CPU too, in some minutes.
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:-runs/gpu} failed=0 all=475
mkdir -p "$out" || exit 1
stamp=$out/started
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"

part() {  # name, seconds at most, name of the result, what python runs
  local name=$1 most=$(($2 < all - SECONDS ? $2 : all - SECONDS)) file=$out/$3; shift 3
  ((most > 0)) || most=1
  if [ -n "${TOY:-}" ]; then most=$all; fi
  printf '\n== %s (%s s so far, at most %s s)\n' "$name" "$SECONDS" "$most"
  touch "$stamp"; sleep 0.1
  timeout "$most" "${PYTHON:-python3}" "$@" 2>&1 | tee "$out/$name.txt"
  if [ "${PIPESTATUS[0]}" != 0 ]; then failed=1; echo "== $name failed or is out of time: see $out/$name.txt"; fi
  if [ "$file" -nt "$stamp" ]; then echo "== $name: written to $file"; else echo "== $name: no result"; fi
}

nets=(base32-16px adm64 base64-32px) compile=(--compile diffusers) rounds=(--rounds 7 --seconds 0.15)
device=cuda
n=(-n 4096 --long-images 512 --batch 1024)
if [ -n "${TOY:-}" ]; then
  device=cpu nets=(base32-16px) compile=() rounds=(--rounds 1 --seconds 0.01) n=(-n 128 --reference 2 --long 2 --no-timing) all=3600
fi
peer=() data=()
if [ -n "${GUIDED:-}" ]; then peer=(--peer "guided-diffusion=$GUIDED"); fi
if [ -n "${DATA:-}" ]; then data=(--data "$DATA" --train-data "${TRAIN:-$DATA}"); fi

part cuda 100 cuda.txt -m pytest -q -p no:cacheprovider tests/cuda tests/nn/test_gpu_norm.py
part few_evaluations 90 few-evaluations.json benchmarks/few_evaluations.py examples/letters "${data[@]}" "${n[@]}" \
  --work "$out/work" --out "$out/few-evaluations.json"
for net in "${nets[@]}"; do  # each adds to the result
  if grep -qs "\"$net\"" "$out/throughput.json"; then continue; fi
  more=()
  if [ "$net" = base64-32px ]; then more=("${compile[@]}"); fi
  part "throughput-$net" 130 throughput.json benchmarks/throughput.py "${rounds[@]}" "${peer[@]}" "${more[@]}" \
    --cases "$net" --out "$out/throughput.json"
done
part kernels 60 kernels.json benchmarks/kernels.py --device "$device" --out "$out/kernels.json"
exit "$failed"

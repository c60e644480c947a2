"""Copy a trained run as a small cascade to share: configurations and EMA weights in bfloat16, nothing else.

    python examples/export_small.py runs/letters examples/letters

The copy samples with every `cdm` command; it cannot be trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from cdm.artifacts import load_json, load_tensors, make_folder, save_json, save_tensors
from cdm.cascade import load_config
from cdm.errors import UserError


def export(run: Path, out: Path) -> int:
    """Returns the number of bytes of weights written."""
    config = load_config(run)
    make_folder(out)
    save_json(out / "cascade.json", {"config": load_json(run / "cascade.json")["config"]})
    total = 0
    for index, stage in enumerate(config.stages):
        name = f"{index}-{stage.size}"
        found = sorted((run / name).glob("ema-*.safetensors"))
        if not found:
            raise UserError(f"stage {name} of {run} has no EMA weights; expected a trained run.")
        tensors, meta = load_tensors(found[0])
        target = make_folder(out / name) / found[0].name
        save_tensors(target, {key: x.to(torch.bfloat16) for key, x in tensors.items()}, meta)
        total += target.stat().st_size
    return total


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        size = export(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        sys.exit(f"export_small: {error}")
    print(f"{sys.argv[2]}: {size / 1e6:.2f} MB of weights")

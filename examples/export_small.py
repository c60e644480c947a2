"""Copy a trained run as a small cascade to share: configurations and EMA weights in bfloat16, nothing else.

    python examples/export_small.py runs/letters examples/letters [0.100]

The last word is the EMA profile, the run's first one by default. The copy samples with every `cdm` command; it cannot
be trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from cdm.artifacts import load_json, load_tensors, make_folder, save_json, save_tensors, weights_file
from cdm.cascade import load_config
from cdm.errors import UserError


def export(run: Path, out: Path, profile: float | None = None) -> int:
    """Returns the number of bytes of weights written."""
    config = load_config(run)
    make_folder(out)
    stored = load_json(run / "cascade.json")["config"]
    total = 0
    for index, stage in enumerate(config.stages):
        name, own = f"{index}-{stage.size}", stage.optim.ema_sigma_rel
        chosen = own[0] if profile is None else profile
        if chosen not in own:
            raise UserError(f"stage {name} of {run} has no EMA profile {chosen:g}; expected one of {own}.")
        tensors, meta = load_tensors(run / name / weights_file(chosen))
        stored["stages"][index]["optim"]["ema_sigma_rel"] = [chosen]  # the only one that is here
        target = make_folder(out / name) / weights_file(chosen)
        save_json(out / name / "config.json", {"config": stored["stages"][index]})  # tells other runs' stages apart
        save_tensors(target, {key: x.to(torch.bfloat16) for key, x in tensors.items()}, meta)
        total += target.stat().st_size
    save_json(out / "cascade.json", {"config": stored})
    return total


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        size = export(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:]))
    except UserError as error:
        sys.exit(f"export_small: {error}")
    print(f"{sys.argv[2]}: {size / 1e6:.2f} MB of weights")

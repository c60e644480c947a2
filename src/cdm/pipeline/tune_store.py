"""How a run is sampled from now on, written into its ``cascade.json``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cdm.artifacts import load_json, save_json
from cdm.config import CascadeConfig, SamplingConfig, from_dict, to_dict


def store_sampling(run: Path, chosen: SamplingConfig, qualities: tuple[SamplingConfig, ...]) -> None:
    """The default and the qualities; what was the default before goes into the history."""
    stored: dict[str, Any] = load_json(run / "cascade.json")
    config = from_dict(CascadeConfig, stored["config"], "cascade.json")
    history = config.sampling_history
    if config.sampling != chosen:
        history = (*history, config.sampling)
    made = replace(config, sampling=chosen, sampling_history=history, qualities=qualities)
    rest = {name: value for name, value in stored.items() if name not in ("config", "sha256", "format_version")}
    save_json(run / "cascade.json", {"config": to_dict(made), **rest})

"""What tests of the CPU kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdm.nn import cpu_attention, cpu_norm


def forget() -> None:
    for module in (cpu_attention, cpu_norm):
        module.kernel.cache_clear()
        module.works.cache_clear()


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder; what is built in it is forgotten afterwards."""
    monkeypatch.setenv("CDM_CACHE", str(tmp_path))
    forget()
    yield tmp_path
    forget()

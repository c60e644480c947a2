"""CI runs every benchmark at toy size."""

from pathlib import Path

HERE = Path(__file__).parent


def test_every_benchmark_has_a_test() -> None:
    scripts = {path.stem for path in (HERE.parents[1] / "benchmarks").glob("*.py")}
    assert len(scripts) > 4 and scripts <= {path.stem.removeprefix("test_") for path in HERE.glob("test_*.py")}

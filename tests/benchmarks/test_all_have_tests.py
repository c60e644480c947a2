"""CI runs every benchmark at toy size, and ``make bench`` at full size."""

from pathlib import Path

HERE = Path(__file__).parent


def test_every_benchmark_has_a_test() -> None:
    scripts = {path.stem for path in (HERE.parents[1] / "benchmarks").glob("*.py")}
    makefile = (HERE.parents[1] / "Makefile").read_text()
    assert {name for name in scripts if f"run {name}.py" not in makefile} == {"readme_table", "record"}
    assert len(scripts) > 4 and scripts <= {path.stem.removeprefix("test_") for path in HERE.glob("test_*.py")}

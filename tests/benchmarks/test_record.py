"""What a file of results says of how it was made."""

import subprocess
from pathlib import Path

import pytest
import record
import torch

from cdm.artifacts import load_json
from cdm.errors import UserError


def test_the_command_is_told_without_the_folders_of_a_machine() -> None:
    argv = ["--peer", "guided-diffusion=/home/x/gd", "--data", "/a/b/val set.zip", "--out", "runs/o.json", "-n", "4"]
    told = record.command("b.py", argv)
    assert told == "python benchmarks/b.py --peer guided-diffusion=gd --data 'val set.zip' --out runs/o.json -n 4"


def test_the_commit_is_told_and_that_the_code_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record.commit() == "unknown"

    def git(*words: str) -> str:
        own = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x", *words]
        return subprocess.run(own, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    for name in ("src/a.py", "benchmarks/b.py", "benchmarks/results/c.json", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    git("add", "-A")
    git("commit", "-m", "x")
    head = git("rev-parse", "HEAD")
    (tmp_path / "benchmarks/results/c.json").write_text("y")  # what is measured is not the code
    (tmp_path / "README.md").write_text("y")
    assert record.commit() == head
    (tmp_path / "src/a.py").write_text("y")
    assert record.commit() == f"{head}, with changes"


def test_a_file_says_how_it_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = record.made("b.py", ["-n", "4"])
    record.save(tmp_path / "o.json", {"a": 1}, how)
    assert load_json(tmp_path / "o.json") == {"made": how, "a": 1}
    assert how["command"] == "python benchmarks/b.py -n 4" and how["torch"] == torch.__version__
    assert "cores" in how["machine"] and how["commit"] and str(tmp_path / "o.json") in capsys.readouterr().out


def test_a_place_where_no_file_can_be_is_told_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "o.json", tmp_path):
        with pytest.raises(UserError, match="no file can be written; expected one in a folder of yours"):
            record.check_out(out)
    assert record.check_out(tmp_path / "new" / "o.json").parent.is_dir()
    with pytest.raises(SystemExit, match=r"b: wrong\."), record.one_sentence("b.py"):
        raise UserError("wrong.")

"""Reports are one whole file that fetches nothing, escape what users named, and say what a run lacks."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

from cdm.artifacts import save_json, save_tensors, weights_hash
from cdm.config import CascadeConfig, NetConfig, StageConfig, to_dict
from cdm.errors import UserError
from cdm.evaluate import pictures
from cdm.evaluate.report import Commands, Picture, Section, Table, Text, training_report, write_report

NASTY = "<script>alert(1)</script> & \"cats\" 'n' dogs"


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that are not closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def images(self) -> list[dict]:
        return [attrs for tag, attrs in self.tags if tag == "img"]


def png(size: int = 8) -> bytes:
    return pictures.png_bytes(pictures.grid(torch.zeros(1, 3, size, size, dtype=torch.uint8), 1))


def net(size: int, low: int = 0) -> NetConfig:
    channels = 6 if low else 3
    return NetConfig(image_size=size, in_channels=channels, out_channels=3, width=32, multipliers=(1, 2), num_blocks=1)


def config(class_names: tuple[str, ...] = ("cat", NASTY)) -> CascadeConfig:
    base = StageConfig(size=16, channels=3, net=net(16))
    top = StageConfig(size=64, channels=3, low_res_size=16, net=net(64, 16))
    return CascadeConfig(class_names=class_names, stages=(base, top))


def make_run(folder, stages_trained: int):
    """A run folder as training leaves it, with tiny made-up weights."""
    folder.mkdir()
    save_json(folder / "cascade.json", {"config": to_dict(config())})
    with open(folder / "events.jsonl", "w") as file:
        facts = {"processor": "AMD EPYC", "device": "cpu", "precision": "bf16", "threads": 2, "torch": "2.13.0"}
        file.write(json.dumps({"kind": "start", "command": "cdm train cats --images 6400", **facts}) + "\n")
        for stage in (0, 1):
            file.write(json.dumps({"kind": "budget", "stage": stage, "at": 0, "images": 6400}) + "\n")
    for name in ("0-16", "1-64")[:stages_trained]:
        (folder / name / "samples").mkdir(parents=True)
        for seen in (640, 3200, 6400):
            (folder / name / "samples" / f"{seen:010d}.png").write_bytes(png(seen // 320))
        if name == "1-64":
            (folder / name / "samples" / "panel-0000006400.png").write_bytes(png(40))
        save_tensors(folder / name / "ema-0.050.safetensors", {"w": torch.ones(3)}, {})
        with open(folder / name / "log.jsonl", "w") as file:
            for i in range(100):
                row = {"stage": name, "images_seen": 64 * (i + 1), "loss": 1.0 / (i + 1), "lr": 1e-3, "grad_norm": 1.0}
                row |= {"images_per_s": 250.0, "seconds": 0.75 * (i + 1)}
                row |= {"val_loss": {"-8..0": 0.25, "0..8": 0.75}} if i % 10 == 9 else {}
                file.write(json.dumps(row) + "\n")
    if stages_trained == 2:
        (folder / "samples.png").write_bytes(png(200))
    return folder


def test_report_is_one_file_that_fetches_nothing(tmp_path):
    source = training_report(make_run(tmp_path / "run", 2), command="cdm train letters").read_text()
    page = Page(source)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a", "base"}
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.images())
    assert not re.search(r"https?:|@import|url\(|\bon\w+=", re.sub(r"base64,[\w+/=]+", "", source))


def test_report_of_a_finished_run(tmp_path):
    run = make_run(tmp_path / "run", 2)
    page = Page(training_report(run).read_text())
    # samples.png, loss curves, first and last grid of each stage, one panel
    assert [int(attrs["width"]) for attrs in page.images()] == [204, 1210, 6, 24, 6, 24, 44]
    assert all(attrs["alt"] for attrs in page.images())
    text = page.text
    hashed = weights_hash({"w": torch.ones(3)})
    machine = "AMD EPYC, cpu, bf16, 2 threads, torch 2.13.0"
    for words in ("cdm train cats --images 6400", machine, f"{hashed}-{hashed}", "16×16 → 64×64", "1 min 15 s", "250"):
        assert words in text, words
    assert "0.5000" in text  # mean of the validation bands
    assert f"{sum(1 / i for i in range(96, 101)) / 5:.4f}" in text  # mean of the last twentieth of the training losses
    assert f"cdm sample {run} --class cat -n 16 --seed 0" in text
    assert "Not finished" not in text


def test_report_of_a_half_trained_run_says_what_is_missing(tmp_path):
    text = Page(training_report(make_run(tmp_path / "run", 1)).read_text()).text
    for words in (
        "Not finished: stage 1.",
        "0 of 6,400",
        "No samples.png yet",
        "not every stage has weights yet",
        "No super-resolution panel yet",
    ):
        assert words in text, words
    assert "cdm sample" not in text


def test_report_of_a_run_that_only_began(tmp_path):
    page = Page(training_report(make_run(tmp_path / "run", 0)).read_text())
    assert "Not finished: stage 0 and stage 1." in page.text
    assert "Nothing is logged yet" in page.text
    assert page.images() == []


def test_damaged_pieces_are_told(tmp_path):
    run = make_run(tmp_path / "run", 2)
    (run / "samples.png").write_bytes(b"\x89PNG half")
    (run / "1-64" / "ema-0.050.safetensors").write_bytes(b"torn")
    text = Page(training_report(run).read_text()).text
    assert "samples.png is damaged" in text
    assert "not every stage has weights yet" in text


def test_not_a_run_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        training_report(tmp_path)


def test_text_from_users_is_escaped_everywhere(tmp_path):
    sections = [
        Section(NASTY, [Text(NASTY), Table([NASTY, "n"], [[NASTY, NASTY]]), Commands([(NASTY, NASTY)])]),
        Section("picture", [Picture(png(), NASTY)]),
    ]
    source = write_report(tmp_path / "r.html", NASTY, sections, {NASTY: NASTY}).read_text()
    page = Page(source)
    assert "<script" not in source
    assert page.text.count(NASTY) == 12  # as text in every place, title and header included
    assert page.images()[0]["alt"] == NASTY


def test_a_class_name_cannot_break_out_of_the_report_or_the_shell(tmp_path):
    run = tmp_path / "a run"
    run.mkdir()
    save_json(run / "cascade.json", {"config": to_dict(config((NASTY, "b")))})
    for name in ("0-16", "1-64"):
        (run / name).mkdir()
        save_tensors(run / name / "ema-0.050.safetensors", {"w": torch.ones(3)}, {})
    source = training_report(run).read_text()
    assert "<script" not in source
    assert f"cdm sample '{run}' --class '<script>alert(1)</script> & \"cats\" '\"'\"'n'" in Page(source).text


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_page_does_not_scroll_sideways(tmp_path, width):
    """A browser lays the page out: nothing is wider than the window, for a phone and for a screen."""
    source = training_report(make_run(tmp_path / "run", 2), command="cdm train " + "x" * 300).read_text()
    # the page itself has no script; this copy tells its width in its title, read through --dump-dom
    probe = "<script>document.title = document.documentElement.scrollWidth + ' ' + window.innerWidth</script></body>"
    frame = tmp_path / "page.html"
    frame.write_text(source.replace("</body>", probe))
    outer = tmp_path / "outer.html"
    measure = "f.onload = () => document.title = f.contentDocument.title"
    outer.write_text(f'<iframe id="f" src="page.html" width="{width}" height="900"></iframe><script>{measure}</script>')
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000"]
    done = subprocess.run([*command, "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=60)
    title = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
    assert title, done.stdout[-300:]
    assert int(title[1]) <= int(title[2]) <= width

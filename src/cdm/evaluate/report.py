"""Self-contained HTML reports: one file with pictures inside, no script, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from PIL import Image as PILImage

from cdm.artifacts import load_tensors, read_events, read_log, weights_hash, write_atomic
from cdm.cascade import load_config
from cdm.config import CascadeConfig, StageConfig
from cdm.errors import UserError
from cdm.evaluate.pictures import loss_curves
from cdm.nn.flops import count_parameters

STYLE = """
:root { color-scheme: light dark; --page: #f6f6f7; --card: #ffffff; --ink: #1d1d22; --quiet: #5c5c66; --line: #dcdce2;
  --accent: #1f4e8c; }
@media (prefers-color-scheme: dark) { :root { --page: #16161a; --card: #212127; --ink: #e8e8ec; --quiet: #a0a0ac;
  --line: #3a3a44; --accent: #8fb8ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 12px; }
section, header { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin-top: 18px; }
p { margin: 0 0 12px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 0 0 12px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 400; color: var(--quiet); }
tr:last-child th, tr:last-child td { border-bottom: 0; }
figure { margin: 0 0 16px; }
figcaption { color: var(--quiet); font-size: .9rem; margin-top: 6px; overflow-wrap: anywhere; }
.picture { overflow-x: auto; }
.picture img { display: block; max-width: 100%; height: auto; border-radius: 6px; cursor: zoom-in; }
.picture input { position: absolute; opacity: 0; }
.picture input:checked + img { max-width: none; cursor: zoom-out; }
.picture input:focus-visible + img { outline: 2px solid var(--accent); }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; margin: 0 0 12px;
  overflow-x: auto; font: .88rem/1.5 ui-monospace, monospace; }
section > :last-child { margin-bottom: 0; }
@media (max-width: 560px) { main { padding: 12px 8px 40px; } section, header { padding: 14px 12px; border-radius: 8px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 6px; } th, td { padding-right: 10px; }
  table { font-size: .9rem; } .picture img { max-width: max(100%, 640px); } }
"""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self) -> str:
        return f"<p>{_safe(self.text)}</p>"


@dataclass(frozen=True)
class Commands:
    """Lines to type in a shell, each with a word on what it does (may be empty)."""

    lines: Sequence[tuple[str, str]]

    def html(self) -> str:
        return "".join(
            (f"<p>{_safe(why)}</p>" if why else "") + f"<pre>{_safe(line)}</pre>" for line, why in self.lines
        )


@dataclass(frozen=True)
class Table:
    """Cells are shown as given: round numbers before. The first cell of a row is its heading."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        head = "".join(f'<th scope="col">{_safe(cell)}</th>' for cell in self.columns)
        body = "".join(
            f'<tr><th scope="row">{_safe(row[0])}</th>'
            + "".join(f"<td>{_safe(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


@dataclass(frozen=True)
class Picture:
    """An image or plot: PNG bytes with a caption. A click or tap shows it at full size."""

    png: bytes
    caption: str

    def html(self) -> str:
        width, height = PILImage.open(io.BytesIO(self.png)).size
        data = base64.b64encode(self.png).decode()
        return (
            f'<figure><label class="picture" style="display:block"><input type="checkbox" aria-label="full size">'
            f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{_safe(self.caption)}">'
            f"</label><figcaption>{_safe(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Text | Commands | Table | Picture]

    def html(self) -> str:
        return f"<section><h2>{_safe(self.title)}</h2>{''.join(block.html() for block in self.blocks)}</section>"


def _safe(text: str) -> str:
    """Text from users (class names, paths) never becomes markup."""
    return html.escape(str(text), quote=True)


def write_report(
    path: str | Path, title: str, sections: Sequence[Section], header: Mapping[str, str] | None = None
) -> Path:
    """Write one HTML file that needs nothing else: no script, no link, no font from outside.

    Args:
        path: of the file; replaced in one go.
        title: heading and title of the page.
        sections: in order.
        header: what stands under the title: run, command, date, machine, weights hash.
    """
    facts = "".join(f"<dt>{_safe(name)}</dt><dd>{_safe(value)}</dd>" for name, value in (header or {}).items())
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_safe(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{_safe(title)}</h1><dl>{facts}</dl></header>"
        f"{''.join(section.html() for section in sections)}</main></body></html>\n"
    )
    write_atomic(Path(path), page.encode("utf-8", "replace"))
    return Path(path)


# ---- the report of a training run ------------------------------------------------------------------------------------

Log = Sequence[Mapping[str, Any]]
"""Lines of one stage's ``log.jsonl``, or of ``events.jsonl``."""


def training_report(run_folder: str | Path, command: str = "") -> Path:
    """Compose ``report.html`` of a run from what its folder holds; a piece that is missing is said to be.

    Reads ``cascade.json``, ``events.jsonl``, ``samples.png``, and of each stage folder ``log.jsonl``, the EMA weights
    (for their hash) and the pictures ``samples/{images_seen}.png`` and ``samples/panel-{images_seen}.png``.

    Args:
        run_folder: with at least a ``cascade.json``.
        command: that trained the run, for the header; by default the one recorded at its last start.

    Returns:
        The path of ``report.html`` in the run folder.
    """
    run = Path(run_folder)
    config = load_config(run)
    folders = [run / f"{index}-{stage.size}" for index, stage in enumerate(config.stages)]
    logs = [read_log(folder / "log.jsonl") for folder in folders]
    hashes = [_hash(folder) for folder in folders]
    events = read_events(run / "events.jsonl")
    start = next((event for event in reversed(events) if event.get("kind") == "start"), {})
    command = command or start.get("command", "")
    header = {"run": str(run)} | ({"command": command} if command else {})
    header |= {"written": time.strftime("%Y-%m-%d %H:%M"), "trained on": _machine(start)}
    header["weights"] = "-".join(hashes) if all(hashes) else "not every stage has weights yet"
    sections = [
        Section("What was trained", _trained(config, logs, _goals(events))),
        Section("Samples", [_picture(run / "samples.png", _samples_caption(config))]),
        Section("Loss", _losses(logs)),
    ]
    for index, (stage, folder) in enumerate(zip(config.stages, folders, strict=True)):
        sections.append(Section(f"Stage {index} while it trained", _progress(stage, folder / "samples")))
    sections.append(Section("What next", [Commands(_next_commands(run, config, all(hashes)))]))
    return write_report(run / "report.html", f"{run.resolve().name}: training report", sections, header)


def _goals(events: Log) -> dict[int, int]:
    """Images that each stage is meant to see: what was last recorded as its budget."""
    return {event["stage"]: event["images"] for event in events if event.get("kind") == "budget"}


def _machine(start: Mapping[str, Any]) -> str:
    """What the start of the run was recorded to be on."""
    facts = [str(start[name]) for name in ("processor", "device", "precision") if start.get(name)]
    facts += [f"{start['threads']} threads"] if start.get("threads") else []
    facts += [f"torch {start['torch']}"] if start.get("torch") else []
    return ", ".join(facts) or "not recorded"


def _hash(folder: Path) -> str:
    """Hash of the weights that sampling uses by default: the first EMA profile. Empty without them."""
    found = sorted(folder.glob("ema-*.safetensors"))
    try:
        return weights_hash(load_tensors(found[0])[0]) if found else ""
    except UserError:  # damaged: `cdm sample` will say so
        return ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _trained(config: CascadeConfig, logs: Sequence[Log], goals: Mapping[int, int]) -> list[Text | Table]:
    """Words on the whole and a table with a column per stage."""
    classes = f"{config.num_classes} classes" if config.class_names else "images without classes"
    sizes = " → ".join(f"{size}×{size}" for size in config.sizes)
    text = f"A cascade of {len(config.stages)} stages, {sizes}, on {classes}, with the recipe {config.recipe}."
    seen = [log[-1]["images_seen"] if log else 0 for log in logs]
    short = [f"stage {index}" for index, count in enumerate(seen) if count == 0 or count < goals.get(index, 0)]
    if short:
        text += f" Not finished: {' and '.join(short)}. Run the training command again to go on."
    columns = [_stage_column(stage, logs[i], goals.get(i, 0)) for i, stage in enumerate(config.stages)]
    names = list(columns[0])
    rows = [[name, *(column[name] for column in columns)] for name in names]
    return [Text(text), Table(["", *(f"stage {index}" for index in range(len(columns)))], rows)]


def _stage_column(stage: StageConfig, log: Log, goal: int) -> dict[str, str]:
    column = {
        "what": "base" if stage.is_base else "SR",
        "size": f"{stage.size}" if stage.is_base else f"{stage.low_res_size} → {stage.size}",
        "parameters": f"{count_parameters(stage.net) / 1e6:.2f} M",
    }
    last = log[-1] if log else {}
    speeds = [row["images_per_s"] for row in log if row.get("images_per_s")]
    losses = [row["loss"] for row in log if row.get("loss") is not None]
    tail = losses[-max(1, len(losses) // 20) :]
    bands = next((row["val_loss"] for row in reversed(log) if row.get("val_loss")), None)
    none = "–"
    seen = last.get("images_seen", 0)
    column["images seen"] = f"{seen:,} of {goal:,}" if seen < goal else f"{seen:,}"
    column["images/s"] = f"{median(speeds):.0f}" if speeds else none
    column["time"] = _duration(last["seconds"]) if last.get("seconds") is not None else none
    column["training loss, end"] = f"{fmean(tail):.4f}" if tail else none
    column["validation loss, end"] = f"{fmean(bands.values()):.4f}" if bands else none
    return column


def _losses(logs: Sequence[Log]) -> list[Text | Picture]:
    rows = [{**row, "stage": index} for index, log in enumerate(logs) for row in log]
    if not rows:
        return [Text("Nothing is logged yet.")]
    words = "Light: as logged; dark: running mean. Validation images are not trained on."
    return [Picture(loss_curves(rows), f"Loss over images seen. {words}")]


def _samples_caption(config: CascadeConfig) -> str:
    words = "Generated images of every class" if config.class_names else "Generated images"
    if len(config.sizes) == 1:
        return f"{words}, {config.sizes[0]} pixels."
    return f"{words}; side by side the stages of one sample, {' | '.join(map(str, config.sizes))} pixels, at one size."


def _picture(path: Path, caption: str) -> Picture | Text:
    """The picture in a file, or words on why it is not here."""
    if not path.exists():
        return Text(f"No {path.name} yet: it is written when every stage is trained.")
    try:
        with PILImage.open(path) as picture:
            picture.verify()
    except (OSError, SyntaxError):  # Pillow tells of a broken PNG by a SyntaxError
        return Text(f"{path.name} is damaged and cannot be shown.")
    return Picture(path.read_bytes(), caption)


def _progress(stage: StageConfig, folder: Path) -> list[Text | Picture]:
    """First and last grid of samples, and the last SR panel."""
    grids = sorted(path for path in folder.glob("*.png") if path.stem.isdigit())
    panels = sorted(folder.glob("panel-*.png"))
    shown = grids[:1] + grids[1:][-1:]
    blocks = [_picture(path, f"Samples after {int(path.stem):,} images.") for path in shown]
    if panels:
        seen = int(panels[-1].stem.removeprefix("panel-"))
        caption = f"Real images through this stage after {seen:,} images: low-res, augmented, super-resolved, real."
        blocks.append(_picture(panels[-1], caption))
    elif not stage.is_base:
        blocks.append(Text("No super-resolution panel yet."))
    return blocks or [Text("No sample grid yet.")]


def _next_commands(run: Path, config: CascadeConfig, trained: bool) -> list[tuple[str, str]]:
    name = shlex.quote(str(run))
    if not trained:
        return [(f"cdm info {name}", "What is there and what is missing:")]
    of_class = f" --class {shlex.quote(config.class_names[0])}" if config.class_names else ""
    commands = [(f"cdm sample {name}{of_class} -n 16 --seed 0", "More images:")]
    if len(config.stages) > 1:
        commands.append(
            (f"cdm upscale {name} small.png", f"Enlarge a small image of your own to {config.sizes[-1]} pixels:")
        )
    return [*commands, (f"cdm info {name}", "Facts about this run:")]

"""Pages in headless Chromium: what it shows, measures and complains of. Debian's ``chromium`` or any in the PATH."""

import base64
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
REQUIRED = "CDM_TEST_CHROMIUM"  # set by .ci/run where it has installed the browser: then nothing may be skipped

MEASURE = """<!doctype html><meta charset="utf-8"><iframe id="page" src="{page}" width="{width}" height="900"></iframe>
<script>
onload = () => {{
  const inner = document.getElementById("page").contentDocument;
  const images = [...inner.images];
  const found = {{
    width: inner.documentElement.scrollWidth, height: inner.documentElement.scrollHeight, title: inner.title,
    images: images.length, broken: images.filter(image => !image.naturalWidth).length,
    tables: inner.querySelectorAll("table").length, text: inner.body.innerText,
    font: Math.min(...[...inner.querySelectorAll("p, td, th, figcaption")].map(
      element => parseFloat(getComputedStyle(element).fontSize))),
  }};
  const note = document.createElement("pre");
  note.id = "found";
  note.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
  document.body.append(note);
}};
</script>"""


@dataclass(frozen=True)
class Seen:
    """What Chromium made of a page. ``console``: its lines; ``found``: what the script above measures."""

    screenshot: Path
    console: list[str]
    found: dict


def chromium() -> str:
    """Path of the browser; skips without one, unless one is promised."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        assert not os.environ.get(REQUIRED), f"{REQUIRED} is set, but there is no Chromium in the PATH"
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


def look(page: Path, folder: Path, width: int) -> Seen:
    """Open ``page`` in a frame ``width`` pixels wide (a window does not become so narrow) and measure it."""
    outer, screenshot = folder / f"measure-{width}.html", folder / f"page-{width}.png"
    outer.write_text(MEASURE.format(page=page.resolve().as_uri(), width=width))
    dom = _run(folder, outer, "--allow-file-access-from-files", "--dump-dom")
    shot = _run(
        folder, page, f"--screenshot={screenshot}", f"--window-size={max(width, 500)},1200", "--hide-scrollbars"
    )
    assert '<pre id="found">' in dom.stdout, f"no answer from the page:\n{dom.stderr[-2000:]}"
    coded = dom.stdout.split('<pre id="found">')[1].split("</pre>")[0]
    found = json.loads(base64.b64decode(coded))
    lines = [line for ran in (dom, shot) for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return Seen(screenshot, lines, found)


def _run(folder: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    line = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        "--virtual-time-budget=10000", "--no-first-run", f"--user-data-dir={folder / 'profile'}", *options,
        page.resolve().as_uri(),
    ]  # fmt: skip
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)

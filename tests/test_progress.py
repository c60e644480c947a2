"""Plain lines of progress, for logs and pipes."""

import io

from rich.console import Console

from cdm.cli.progress import PlainLines, SamplingWork


def test_lines_come_every_ten_seconds_with_the_time_left() -> None:
    now, out = 0.0, io.StringIO()
    lines = PlainLines(Console(file=out, width=200), clock=lambda: now)
    for second in range(41):
        now = float(second)
        lines.update("making images", second, 40, f"{second} of 40")
    told = out.getvalue().splitlines()
    assert told == [
        "making images: 10 of 40, 30 s left",
        "making images: 20 of 40, 20 s left",
        "making images: 30 of 40, 10 s left",
    ]


def test_short_work_stays_silent_and_what_was_done_before_does_not_count() -> None:
    now, out = 0.0, io.StringIO()
    lines = PlainLines(Console(file=out, width=200), clock=lambda: now)
    lines.update("features", 0, 10, "0 of 10")
    now = 9.0
    lines.update("features", 5, 10, "5 of 10")
    assert out.getvalue() == ""
    lines.update("images", 900, 1000, "900 of 1,000")  # resumed
    now = 19.0
    lines.update("images", 950, 1000, "950 of 1,000")
    assert out.getvalue().splitlines() == ["images: 950 of 1,000, 10 s left"]


def test_sampling_work_is_counted_by_images_and_adds_up_over_batches_and_stages() -> None:
    work = SamplingWork([10.0, 400.0])
    told = [work.update(0, done, 2, images) for images in (4, 3) for done in (1, 2)]
    told += [work.update(1, done, 4, 7) for done in range(1, 5)]
    assert told == [20, 40, 55, 70, 770, 1470, 2170, 2870]


def test_what_a_batch_without_room_had_done_is_taken_back() -> None:
    """It is made again in halves: the end is reached only when all is made."""
    work = SamplingWork([8.0])
    assert work.update(0, 1, 4, 4) == 8 and work.update(0, 3, 4, 4) == 24  # then the memory runs out
    halves = [work.update(0, done, 4, 2) for _ in range(2) for done in range(1, 5)]
    assert halves == [4, 8, 12, 16, 20, 24, 28, 32]

"""The curve of a run as PNG or SVG, by matplotlib (the extra `plot`)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from picoedge.errors import UsageError
from picoedge.files import replace_file, writing
from picoedge.train.run.curve import Points

_KINDS = (".png", ".svg")
_WINDOWS = 200  # of the smooth line: a window is this part of the run


def check_plot(path: Path) -> None:
    """Find out before hours of training that a plot cannot be made. Raises UsageError."""
    if path.suffix.lower() not in _KINDS:
        raise UsageError(
            f"--plot {path}: unknown kind of picture", "its name has to end in .png or .svg"
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}", "make it first")
    _matplotlib()


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise UsageError(
            f"--plot needs matplotlib, which is not installed ({error})",
            "pip install 'picoedge[plot]', or do without: a curve is drawn in the terminal",
        ) from error
    return matplotlib


def save_plot(path: Path, training: Points, held_out: Points, title: str) -> None:
    """Write the picture, whole or not at all. Raises UsageError, StorageError."""
    matplotlib = _matplotlib()
    figure = matplotlib.figure.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps, losses = [step for step, _ in training], [loss for _, loss in training]
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, _smooth(losses), color="tab:blue", label="training loss")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", markersize=3,
                  label="held-out loss")  # fmt: skip
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    # Without a date the same run gives the same file.
    kind = path.suffix.lower().removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "picoedge"}):
        figure.savefig(
            buffer, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else {}
        )
    with writing(path.absolute().parent):
        replace_file(path, buffer.getvalue())


def _smooth(losses: list[float]) -> list[float]:
    """Means over a window that ends at each step."""
    window, smooth, total = max(1, len(losses) // _WINDOWS), [], 0.0
    for i, loss in enumerate(losses):
        total += loss - (losses[i - window] if i >= window else 0.0)
        smooth.append(total / min(i + 1, window))
    return smooth

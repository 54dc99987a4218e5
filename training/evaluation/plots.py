"""The common style of the plots in docs/."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b7f5c", "#3b6fb6", "#c2702c", "#8a4f9e", "#8a8a1f", "#a33b3b")


def finish(figure: Figure, axes: Axes, path: Path, *, x: str, y: str) -> None:
    """Label the axes, remove the frame, and write the figure reproducibly."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})

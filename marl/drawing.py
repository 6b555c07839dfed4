"""How every picture of this project looks: colours, frames, and the command below it."""

from __future__ import annotations

import io
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marl.runfolder import check_target, explain_disk_errors, spelt, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's palette, which people with any colour vision can tell apart."""

DASHES = ("-", "--", ":", "-.")

CAPTION_SIZE, CHARACTER = 7.0, 0.06
"""The caption's size in points, and how many inches one of its characters takes: 9 pixels."""


def line_style(i: int) -> dict[str, Any]:
    """What tells the i-th line from the others: 8 colours, then the same with other dashes."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


def band_style(i: int) -> dict[str, Any]:
    """The interval around the i-th line."""
    return {"color": COLOURS[i % len(COLOURS)], "alpha": 0.18, "linewidth": 0}


def new_figure(width: float, height: float) -> Figure:
    """An empty picture; inches, of which each has 150 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """A light grid behind the lines and no frame above them."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)


def write_caption(figure: Figure, text: str, command: str) -> None:
    """Below the picture: what its lines mean, and the command that draws it, in lines as wide as the picture."""
    wide = int(0.97 * figure.get_figwidth() / CHARACTER)
    lines = [part for each in (text, command) for part in textwrap.wrap(spelt(each), wide, break_on_hyphens=False)]
    about = {"fontsize": CAPTION_SIZE, "color": "0.4", "family": "monospace"}
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", **about)


def save(figure: Figure, out: Path) -> None:
    """Write the PNG whole or not at all; raises ``UserError`` where that cannot be."""
    check_target(out, ".png")
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a letter that the font lacks, of little room
        figure.savefig(data, format="png")
    with explain_disk_errors(out.absolute().parent, f"{out.name} was not written"):
        write_atomically(out, data.getvalue())

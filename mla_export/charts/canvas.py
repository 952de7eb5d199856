"""The figure that charts are drawn on: its look, its axes, its legend, and how it becomes a `Chart`."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mla_export.charts.colours import MARKS
from mla_export.charts.numbers import powers, short
from mla_export.charts.svg import Chart, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (7.2, 3.6)  # inches of 72 points: 691 pixels across
LEGEND_ROW = 0.19  # inches that a row of the legend takes; two have room in SIZE
FONT = 9.0  # points: 12 pixels
CHARACTERS = 100  # that fit across at this size, in matplotlib's wide font
# what XML has no place for, and what breaks a line
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows. `ticks` are the only ones where given; `write` writes a number beside its tick.

    `from_zero` begins it at 0; `whole` has ticks at whole numbers only.
    """

    label: str
    log: bool = False
    ticks: Sequence[float] | None = None
    write: Callable[[float], str] | None = None
    from_zero: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """A line across, with words on it: what may not be passed."""

    value: float
    words: str


def printable(text: str, most: int = 60) -> str:
    """Take out of a name what cannot be printed, and the middle of what is longer than `most`."""
    clean = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    half = (most - 1) // 2
    clean = clean if len(clean) <= most else f"{clean[:half]}…{clean[-half:]}"
    # matplotlib keeps what begins with an underscore out of legends
    return f"\u200b{clean}" if clean.startswith("_") else clean


@contextmanager
def canvas(x: Axis, y: Axis) -> Iterator[tuple[Figure, Axes]]:
    """Give an empty figure in the marks of `colours`, whatever matplotlib is set to elsewhere."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, faint = MARKS["ink"], MARKS["faint"]
    with mpl.rc_context(), warnings.catch_warnings():
        # the reader's font has what matplotlib's lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "mla-export",
                "text.parse_math": False,
                "font.size": FONT,
                "text.color": ink,
                "axes.labelcolor": ink,
                "axes.edgecolor": faint,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": faint,
                "grid.linewidth": 0.6,
                "xtick.color": faint,
                "ytick.color": faint,
                "xtick.labelcolor": ink,
                "ytick.labelcolor": ink,
                "hatch.color": MARKS["paper"],
                "lines.linewidth": 1.6,
                "patch.linewidth": 1.6,
                "lines.markersize": 4,
                "legend.frameon": False,
            }
        )
        figure = Figure(figsize=SIZE, layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        _scale(axes.xaxis, axes.set_xscale, x)
        _scale(axes.yaxis, axes.set_yscale, y)
        yield figure, axes


def _scale(side: Any, set_scale: Callable[[str], None], axis: Axis) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    side.set_label_text(printable(axis.label))
    write = axis.write or (powers if axis.log else short)
    if axis.log:
        set_scale("log")
        side.set_minor_formatter(NullFormatter())
    if axis.ticks is not None:
        side.set_major_locator(FixedLocator(list(axis.ticks)))
        side.set_minor_locator(NullLocator())
    elif axis.whole:
        side.set_major_locator(MaxNLocator(integer=True))
    side.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def draw_limits(axes: Axes, limits: Sequence[Limit]) -> None:
    """Draw each limit across the plot, its words on the paper above its right end."""
    for limit in limits:
        axes.axhline(limit.value, color=MARKS["limit"], linestyle="dotted")
        axes.annotate(
            printable(limit.words),
            (1, limit.value),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            color=MARKS["limit"],
            fontsize=FONT - 1,
            bbox={"facecolor": MARKS["paper"], "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


def draw_legend(figure: Figure, axes: Axes, title: str) -> None:
    """Name the series above the plot, where they cover no line; a single one has the title for a name."""
    handles, labels = axes.get_legend_handles_labels()
    heading = {"size": FONT + 2, "weight": "bold"}
    if len(labels) < 2:
        axes.set_title(printable(title, 90), loc="left", pad=10, fontdict=heading)
        return
    across = max(1, CHARACTERS // (max(map(len, labels)) + 8))
    rows = -(-len(labels) // across)
    figure.set_size_inches(SIZE[0], SIZE[1] + LEGEND_ROW * max(0, rows - 2))
    legend = figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=min(len(labels), across),
        handlelength=3.2,
        title=printable(title, 90),
        title_fontproperties=heading,
    )
    legend.set_alignment("left")


def finished(figure: Figure, name: str, title: str, described: str, limits: Sequence[Limit]) -> Chart:
    """Make a chart of the figure; `described` is for those who do not see it, and is told the limits too."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(written, format="svg", metadata=nothing)
    told = "".join(f" {limit.words}: {short(limit.value)}." for limit in limits)
    clean = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", described + told)
    return chart(name, printable(title, 90), clean, written.getvalue())

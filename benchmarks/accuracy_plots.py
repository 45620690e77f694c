"""The pictures of the accuracy report, as SVG that is the same for the same figures."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
MARKERS = "osD^vP"
# Okabe and Ito's colours, told apart with any colour vision.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")
STYLES = ("-", "-", "--", "-.", ":")
WORST_SHOWN = 1.0  # of an absolute relative error, where its distribution is cut

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Panel:
    """One scatter plot: true and predicted values, and what tells points apart; shape (points,) each.

    Points that do not count are drawn hollow.
    """

    title: str
    caption: str
    truth: Vector
    predicted: Vector
    colour: Sequence[str]
    marker: Sequence[str]
    counted: Mask


@dataclass(frozen=True)
class Legend:
    """What colours and markers stand for: every value, in order."""

    colours: Sequence[str]
    markers: Sequence[str]
    hollow: str | None = None


def require_matplotlib() -> None:
    """Say so before anything that takes long."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "the report's pictures need matplotlib, which is not installed; run `pip install cascadia-fast[report]`"
        ) from None


def scatter(panels: Sequence[Panel], legend: Legend, what: str, unit: str, band: float) -> str:
    """Predicted against true values, panel by panel on the same logarithmic axes, with a band around equality."""
    figure, axes = _grid(len(panels))
    low, high = _limits(panels)
    colour = dict(zip(legend.colours, _shades(len(legend.colours)), strict=True))
    marker = dict(zip(legend.markers, MARKERS * (len(legend.markers) // len(MARKERS) + 1), strict=False))
    for ax, panel in zip(axes, panels, strict=False):
        line = np.array([low, high])
        ax.fill_between(line, line * (1 - band), line * (1 + band), color="#bbbbbb", alpha=0.5, lw=0, zorder=0)
        ax.plot(line, line, color="#666666", lw=0.8, zorder=1)
        _points(ax, panel, colour, marker)
        ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
        ax.set_title(panel.title, fontsize=9.5, loc="left")
        ax.text(0.97, 0.04, panel.caption, transform=ax.transAxes, ha="right", va="bottom", fontsize=8)
        _ticks(ax, low, high)
    figure.supxlabel(f"{what} [{unit}]", fontsize=10)
    figure.supylabel(f"predicted [{unit}]", fontsize=10)
    _legend(figure, legend, colour, marker, band)
    return _svg(figure)


def distributions(panels: Mapping[str, Mapping[str, Vector]]) -> str:
    """Share of runs whose absolute relative error is at most x, one line per predictor."""
    figure, axes = _grid(len(panels), columns=2, height=2.7)
    for ax, (title, lines) in zip(axes, panels.items(), strict=False):
        for (name, found), colour, style in zip(lines.items(), LINES, STYLES, strict=False):
            ordered = np.sort(np.abs(found))
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            ax.plot(100 * np.r_[0, ordered], 100 * np.r_[0, share], style, color=colour, label=name, drawstyle="steps")
        ax.set(xlim=(0, 100 * WORST_SHOWN), ylim=(0, 100))
        ax.axhline(50, color="#999999", lw=0.8, zorder=0)
        ax.grid(alpha=0.3)
        ax.set_title(title, fontsize=9.5, loc="left")
        ax.tick_params(labelsize=8)
    figure.supxlabel("absolute error [%]", fontsize=10)
    figure.supylabel("runs with at most this error [%]", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9, frameon=False)
    return _svg(figure)


def _grid(panels: int, columns: int = COLUMNS, height: float = 3.1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    # No narrower than the legend above it.
    figure = Figure(figsize=(max(6.8, 3.4 * columns), 0.9 + height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for ax in axes[panels:]:
        ax.set_visible(False)
    return figure, axes


def _points(ax: Axes, panel: Panel, colour: Mapping[str, str], marker: Mapping[str, str]) -> None:
    shown = np.isfinite(panel.truth) & np.isfinite(panel.predicted)
    looks = list(zip(panel.colour, panel.marker, panel.counted.tolist(), strict=True))
    for look in dict.fromkeys(looks):
        keep = shown & np.array([other == look for other in looks])
        shade, counted = colour[look[0]], look[2]
        ax.scatter(
            panel.truth[keep],
            panel.predicted[keep],
            s=16,
            marker=marker[look[1]],
            facecolors=shade if counted else "none",
            edgecolors="white" if counted else shade,
            linewidths=0.3 if counted else 0.8,
            zorder=3 if counted else 2,
        )


def _legend(figure: Figure, legend: Legend, colour: Mapping[str, str], marker: Mapping[str, str], band: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def point(label: str, shape: str, shade: str, filled: bool = True) -> Line2D:
        face = shade if filled else "none"
        return Line2D([], [], ls="", marker=shape, mfc=face, mec=shade, ms=5.5, label=label)

    handles: list[Any] = [point(name, "o", shade) for name, shade in colour.items()]
    if len(marker) > 1:
        handles += [point(name, shape, "#444444") for name, shape in marker.items()]
    if legend.hollow:
        handles.append(point(legend.hollow, "o", "#444444", filled=False))
    handles.append(Patch(color="#bbbbbb", alpha=0.5, label=f"within {100 * band:.0f} %"))
    figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=8.5, frameon=False)


def _limits(panels: Sequence[Panel]) -> tuple[float, float]:
    values = np.concatenate([part for panel in panels for part in (panel.truth, panel.predicted)])
    values = values[np.isfinite(values)]
    return (float(values.min()) / 1.2, float(values.max()) * 1.2) if len(values) else (1.0, 10.0)


def _ticks(ax: Axes, low: float, high: float) -> None:
    """Plain numbers: powers of ten over many decades, 1-2-5 over few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    subs = (1.0,) if high / low > 500 else (1.0, 2.0, 5.0)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.5g}" if value < 1e4 else f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)


def _shades(count: int) -> list[str]:
    """Ordered colours, dark to light and without the lightest yellow, told apart with any colour vision."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["plasma"](0.85 * step / max(count - 1, 1))) for step in range(count)]


def _svg(figure: Figure) -> str:
    import matplotlib

    text = io.StringIO()
    # Without a salt and with a date the same figures would not give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "cascadia-fast"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()

"""All results in one table, and as a picture."""

from __future__ import annotations

import sys
from pathlib import Path

from measure import Result


def table(results: list[Result]) -> str:
    """A line for each bar: its row, what was measured, the limit, what was found."""
    lines = []
    for result in sorted(results, key=lambda result: int(result.row[1:] or 99)):
        if result.missing:
            lines.append((result.row, result.name, "", f"missing: {result.missing}", ""))
        for bar in result.bars:
            lines.append((result.row, result.name, bar.limit, bar.found, "yes" if bar.holds else "NO"))
    heads = ("#", "work", "bar", "found", "holds")
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(4)]

    def row(cells: tuple[str, ...]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        return "  ".join([*padded, cells[4]]).rstrip()

    return "\n".join([row(heads), "  ".join("-" * width for width in widths), *map(row, lines)])


def plot(results: list[Result], path: Path) -> None:
    """Medians and tenths of each result beside each other, as a PNG. Needs matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print(f"{path} was not drawn: there is no matplotlib (pip install matplotlib)", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [result for result in results if len(result.series) > 1]
    columns = 3
    rows = (len(shown) + columns - 1) // columns
    figure, axes = pyplot.subplots(max(rows, 1), columns, figsize=(6 * columns, 2.6 * max(rows, 1)), squeeze=False)
    for place, axis in enumerate(axes.flat):
        if place >= len(shown):
            axis.axis("off")
            continue
        result = shown[place]
        series = [one for one in result.series if one.unit == result.series[0].unit]
        medians = [one.median for one in series]
        low = [max(0.0, one.median - one.spread()[0]) for one in series]
        high = [max(0.0, one.spread()[1] - one.median) for one in series]
        colours = ["#1f5fa8", *["#9aa7b5"] * (len(series) - 1)]
        axis.barh([one.label for one in series], medians, xerr=[low, high], color=colours, capsize=3)
        axis.invert_yaxis()
        axis.set_title(f"{result.row} {result.name} ({series[0].unit})", fontsize=10)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)

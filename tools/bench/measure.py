"""Numbers and how they are told: series taken in turns, medians, spread, ratios, bars. It measures nothing itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

WARM_UP = 2  # rounds that are not counted: caches fill, modules are imported


@dataclass
class Series:
    """What was measured of one thing, in *unit*, a value a round."""

    label: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def spread(self) -> tuple[float, float]:
        """The values that a tenth lies below and a tenth lies above."""
        if len(self.values) < 3:
            return min(self.values), max(self.values)
        tenths = statistics.quantiles(self.values, n=10, method="inclusive")
        return tenths[0], tenths[-1]

    def __str__(self) -> str:
        low, high = self.spread()
        return f"{self.label:<46}{self.median:>10.2f} {self.unit:<6} (10-90 %: {low:.2f} to {high:.2f})"


@dataclass
class Bar:
    """A limit, what was found, and whether it holds."""

    limit: str
    found: str
    holds: bool

    def __str__(self) -> str:
        return f"bar: {self.limit}; found: {self.found}: {'holds' if self.holds else 'DOES NOT HOLD'}"


@dataclass
class Result:
    """One measurement: its name, how it was made, what was found. *row* is its place in the table, P1 to P12.

    *missing* says why there is nothing, *without* which peers were not there.
    """

    name: str
    how: str
    series: list[Series] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    missing: str = ""
    row: str = ""
    without: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.missing and all(bar.holds for bar in self.bars)

    def __str__(self) -> str:
        lines = [f"{self.row + ' ' if self.row else ''}{self.name}: {self.how}"]
        lines += [f"not measured, missing: {self.missing}"] if self.missing else []
        lines += [*map(str, self.series), *self.facts, *map(str, self.bars)]
        lines += [f"not compared with {peer}" for peer in self.without]
        return "\n  ".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "row": self.row,
            "name": self.name,
            "how": self.how,
            "missing": self.missing,
            "without": self.without,
            "series": [
                {"label": s.label, "unit": s.unit, "median": s.median, "spread": s.spread(), "values": s.values}
                for s in self.series
            ],
            "facts": self.facts,
            "bars": [{"limit": b.limit, "found": b.found, "holds": b.holds} for b in self.bars],
        }


def in_turns(rounds: int, unit: str, takers: Mapping[str, Callable[[], float]]) -> list[Series]:
    """Takes a value of each in every round, so that whatever else the host does meets all alike.

    The order turns round from one round to the next: none always comes after the same other.
    """
    series = {label: Series(label, unit, []) for label in takers}
    labels = list(takers)
    for number in range(-min(WARM_UP, rounds), rounds):
        for label in labels if number % 2 else reversed(labels):
            value = takers[label]()
            if number >= 0:
                series[label].values.append(value)
    return list(series.values())


def ratio(ours: Series, theirs: Series) -> float:
    """The median of the rounds' own ratios: what else the host does changes from one minute to the next."""
    return statistics.median(our / their for our, their in zip(ours.values, theirs.values, strict=True))


def quick_ratio(ours: Series, theirs: Series) -> float:
    """That of the quick tenths, which tells how much the host's other work is to blame."""
    return ours.spread()[0] / theirs.spread()[0]


def at_most_times(limit: float, ours: Series, theirs: Series) -> Bar:
    """A bar on a time: at most so many times that of *theirs*."""
    found = ratio(ours, theirs)
    told = f"{found:.2f} times ({quick_ratio(ours, theirs):.2f} at the quick end)"
    return Bar(f"at most {limit:.2f} times {theirs.label}", told, found <= limit)


def times_faster(limit: float, ours: Series, theirs: Series) -> Bar:
    """A bar on a time: that of *theirs* is at least so many times ours."""
    found = ratio(theirs, ours)
    return Bar(f"at least {limit:g} times as fast as {theirs.label}", f"{found:.1f} times", found >= limit)


def at_least_times(limit: float, ours: Series, theirs: Series) -> Bar:
    """A bar on a rate: at least so many times that of *theirs*."""
    found = ratio(ours, theirs)
    return Bar(f"at least {limit:.2f} times {theirs.label}", f"{found:.2f} times", found >= limit)


def at_most_over(limit: float, ours: Series, theirs: Series) -> Bar:
    """A bar on the difference of two medians."""
    found, quick = ours.median - theirs.median, ours.spread()[0] - theirs.spread()[0]
    told = f"{found:.2f} {ours.unit} ({quick:.2f} at the quick end)"
    return Bar(f"{ours.label}: at most {limit:g} {ours.unit} over {theirs.label}", told, found <= limit)


def at_most(limit: float, series: Series) -> Bar:
    """A bar on a value itself."""
    found = series.median
    return Bar(f"{series.label}: at most {limit:g} {series.unit}", f"{found:.2f} {series.unit}", found <= limit)

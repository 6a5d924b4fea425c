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
    """One measurement: its name, how it was made, what was found. *missing* says why there is nothing."""

    name: str
    how: str
    series: list[Series] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    missing: str = ""

    @property
    def holds(self) -> bool:
        return not self.missing and all(bar.holds for bar in self.bars)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.how}"]
        lines += [f"not measured, missing: {self.missing}"] if self.missing else []
        lines += [*map(str, self.series), *self.facts, *map(str, self.bars)]
        return "\n  ".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "name": self.name,
            "how": self.how,
            "missing": self.missing,
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
    """The ratio of the medians."""
    return ours.median / theirs.median


def at_most_times(limit: float, ours: Series, theirs: Series) -> Bar:
    """A bar on the ratio of two medians; that of the quick tenths tells how much the host's other work is to blame."""
    found, quick = ratio(ours, theirs), ours.spread()[0] / theirs.spread()[0]
    return Bar(
        f"at most {limit:.2f} times {theirs.label}", f"{found:.2f} times ({quick:.2f} at the quick end)", found <= limit
    )


def at_most_over(limit: float, ours: Series, theirs: Series) -> Bar:
    """A bar on the difference of two medians."""
    found = ours.median - theirs.median
    return Bar(f"at most {limit:g} {ours.unit} over {theirs.label}", f"{found:.2f} {ours.unit}", found <= limit)

"""Small SVG plots: bars and lines on a logarithmic axis, legible on light and dark pages."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH = 760
LEFT, RIGHT, TOP, ROW = 190, 90, 44, 22
COLOURS = ("#3b7dd8", "#d9822b", "#5a9e5d", "#a45bb5", "#c0504d", "#777777")
TEXT = "#808080"


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{TEXT}">{escape(text)}</text>'
    )


def _write(file: Path, height: float, parts: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        'font-family="sans-serif">'
    )
    file.write_text("\n".join([head, *parts, "</svg>"]) + "\n", encoding="utf-8")


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def bars(file: Path, title: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Draw a bar per name, grouped; each is labelled with its value."""
    values = [value for group in groups.values() for value in group.values()]
    if not values:
        return
    ticks = _decades(min(values) / 1.5, max(values))
    low, high = math.log10(ticks[0]), math.log10(ticks[-1])

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    y = TOP
    bodies = []
    for label, group in groups.items():
        bodies.append(_text(8, y + 12, label, size=13))
        y += ROW
        for name, value in group.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            bodies.append(_text(LEFT - 8, y + 12, name, anchor="end"))
            width = x(value) - LEFT
            bodies.append(
                f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}"/>'
            )
            bodies.append(_text(x(value) + 6, y + 12, f"{value:,.1f}"))
            y += ROW
        y += ROW // 2
    grid = [
        f'<line x1="{x(tick):.1f}" y1="{TOP - 8}" x2="{x(tick):.1f}" y2="{y}" '
        f'stroke="{TEXT}" stroke-opacity="0.3"/>' + _text(x(tick), TOP - 12, f"{tick:g}", size=11)
        for tick in ticks
    ]
    _write(file, y + 8, [_text(8, 18, title, size=15), *grid, *bodies])


def lines(
    file: Path, title: str, series: Mapping[str, Mapping[float, float]], *, below: str
) -> None:
    """Draw a line per name over a logarithmic axis, both ways."""
    points = [point for line in series.values() for point in line.items()]
    if len(points) < 2:
        return
    height, bottom = 360, 320
    ticks_x = _decades(min(at for at, _ in points), max(at for at, _ in points))
    ticks_y = _decades(min(value for _, value in points), max(value for _, value in points))

    def place(ticks: Sequence[float], value: float) -> float:
        low, high = math.log10(ticks[0]), math.log10(ticks[-1])
        return (math.log10(value) - low) / (high - low)

    def x(value: float) -> float:
        return 70 + place(ticks_x, value) * (WIDTH - 70 - 190)

    def y(value: float) -> float:
        return bottom - place(ticks_y, value) * (bottom - TOP)

    parts = [_text(8, 18, title, size=15), _text(x(ticks_x[-1]), height - 6, below, anchor="end")]
    parts += [
        _text(x(tick), bottom + 16, f"{tick:,g}", anchor="middle", size=11) for tick in ticks_x
    ]
    for tick in ticks_y:
        parts.append(
            f'<line x1="70" y1="{y(tick):.1f}" x2="{x(ticks_x[-1]):.1f}" y2="{y(tick):.1f}" '
            f'stroke="{TEXT}" stroke-opacity="0.3"/>'
        )
        parts.append(_text(62, y(tick) + 4, f"{tick:,g}", anchor="end", size=11))
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in sorted(line.items()))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        top = TOP + number * 18
        parts.append(f'<rect x="{WIDTH - 175}" y="{top}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(WIDTH - 158, top + 11, name))
    _write(file, height, parts)

"""Figures of the report, as the plain data that Plotly draws; the page gives them its colours, light or dark.

Arm and phase names may come from outside: escaped.
"""

import html
from collections.abc import Sequence
from typing import Any

from tirkit.evaluation.run import KnowledgeResult
from tirkit.evaluation.tables import ArmRow
from tirkit.types import Record

COLOURS = ("#2563c9", "#d1600a", "#0f8a7e", "#b02a72", "#6a4fc4", "#7a6a00", "#5b6770", "#a33b2e")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "triangle-down")
MAX_POINTS = 800
SMOOTH_FROM = 60  # a curve of at least so many points also gets its running mean


class Curve(Record):
    """One line: x, y and, where known, the standard error of y; all of one length."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    stderr: tuple[float, ...] = ()


class Panel(Record):
    """One diagram: its curves share the axes."""

    title: str
    curves: tuple[Curve, ...]
    x_label: str = "step"
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    note: str = ""


Figure = dict[str, Any]


def panel_figure(panel: Panel) -> Figure:
    """The curves of a panel; a long one as a faint line with its running mean on top."""
    traces: list[Figure] = []
    for number, curve in enumerate(panel.curves):
        stride = -(-len(curve.x) // MAX_POINTS)
        x, y = list(curve.x[::stride] if stride else ()), list(curve.y[::stride] if stride else ())
        line = _trace(curve.name, x, y, number, list(curve.stderr[::stride] if curve.stderr else ()))
        if len(x) >= SMOOTH_FROM and not curve.stderr:
            faint = line | {"opacity": 0.25, "showlegend": False, "hoverinfo": "skip"}
            traces += [faint, line | {"y": running_mean(y, max(5, len(y) // 20))}]
        else:
            traces.append(line | ({"mode": "lines+markers"} if len(x) < SMOOTH_FROM else {}))
    layout = _layout(panel.x_label, panel.y_label)
    if panel.log_x:
        layout["xaxis"] |= _log_axis([x for curve in panel.curves for x in curve.x])
    if panel.log_y:
        layout["yaxis"] |= _log_axis([y for curve in panel.curves for y in curve.y])
    return {"data": traces, "layout": layout}


def accuracy_figure(rows: Sequence[ArmRow]) -> Figure:
    """Accuracy (with its standard error) against prompt tokens, one point an arm."""
    traces: list[Figure] = []
    costs: list[float] = []
    for number, row in enumerate(rows):
        success, tokens = row.estimates["success"], row.estimates["prompt_tokens"]
        if success is None or tokens is None:
            continue
        costs.append(tokens.mean)
        trace = _trace(row.arm, [tokens.mean], [success.mean], number, [success.stderr or 0.0])
        traces.append(trace | {"mode": "markers"})
    layout = _layout("prompt tokens per task", "accuracy")
    layout["yaxis"]["range"] = [-0.03, 1.03]
    if costs and max(costs) > 8 * max(min(costs), 1.0):
        layout["xaxis"] |= _log_axis(costs)
    elif costs:
        layout["xaxis"]["range"] = [0, 1.1 * max(costs)]
    return {"data": traces, "layout": layout}


def knowledge_figure(phases: Sequence[KnowledgeResult]) -> Figure:
    """Memorise, recall (exact) and recall (field F1) after every phase, with standard errors."""
    names = {"memorise": "memorise", "recall": "recall, exact", "recall_f1": "recall, field F1"}
    traces: list[Figure] = []
    for number, (metric, label) in enumerate(names.items()):
        values = [(phase.phase, value) for phase in phases if (value := phase.estimate(metric)) is not None]
        means = [value.mean for _, value in values]
        errors = [value.stderr or 0.0 for _, value in values]
        trace = _trace(label, [_label(phase) for phase, _ in values], means, number, errors)
        traces.append(trace | {"mode": "lines+markers"})
    layout = _layout("after phase", "share of tools")
    layout["yaxis"]["range"] = [-0.03, 1.03]
    layout["xaxis"]["type"] = "category"
    return {"data": traces, "layout": layout}


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over up to `window` values around each one, fewer at the ends.

    >>> running_mean([0.0, 3.0, 6.0], 3)
    [1.5, 3.0, 4.5]
    """
    half = window // 2
    parts = (values[max(0, at - half) : at + half + 1] for at in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def _trace(name: str, x: Sequence[Any], y: Sequence[float], number: int, stderr: Sequence[float] = ()) -> Figure:
    colour, symbol = COLOURS[number % len(COLOURS)], SYMBOLS[number % len(SYMBOLS)]
    trace: Figure = {
        "type": "scatter",
        "mode": "lines",
        "name": _label(name),
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "symbol": symbol, "size": 9},
    }
    if any(stderr):
        trace["error_y"] = {"type": "data", "array": list(stderr), "thickness": 1.5, "width": 4}
    return trace


def _layout(x_label: str, y_label: str) -> Figure:
    axis = {"ticks": "outside", "zeroline": False, "automargin": True}
    return {
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 55, "r": 15, "t": 10, "b": 45},
        "height": 320,
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "hovermode": "closest",
        "xaxis": axis | {"title": {"text": _label(x_label)}},
        "yaxis": axis | {"title": {"text": _label(y_label)}},
    }


def _log_axis(values: Sequence[float]) -> Figure:
    """A logarithmic axis, labelled at the powers of ten where there is room for no more."""
    positive = [value for value in values if value > 0]
    wide = bool(positive) and max(positive) >= 10 * min(positive)
    return {"type": "log", "tickformat": ",~g"} | ({"dtick": 1} if wide else {})


def _label(text: str) -> str:
    # Plotly reads a little HTML in its labels.
    return html.escape(text, quote=False)

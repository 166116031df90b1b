"""A panel as a small SVG, for pages that show no scripts."""

import html

from tirkit.evaluation.charts import COLOURS, Panel

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 760, 360, 46, 34, 40, 220
DASHES = ("", "6 3", "2 3")  # there are more curves than colours that are told apart


def svg(panel: Panel) -> str:
    """Curves of shares in [0, 1] over steps, with a legend at the right."""
    last = max((x for curve in panel.curves for x in curve.x), default=1.0)
    right, floor = WIDTH - LEGEND, HEIGHT - BOTTOM

    def at(x: float, y: float) -> str:
        return f"{LEFT + (right - LEFT) * x / last:.1f},{floor - (floor - TOP) * y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#22272e">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600">{html.escape(panel.title)}</text>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        start, end = at(0, tick), at(last, tick)
        parts.append(f'<path d="M{start} L{end}" stroke="#dfe3e8"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(start.split(",")[1]) + 4}" text-anchor="end">{tick:g}</text>')
    for tick in (0.0, last / 2, last):
        x = at(tick, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{floor + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{panel.x_label}</text>')
    for number, curve in enumerate(panel.curves):
        points = " ".join(at(x, y) for x, y in zip(curve.x, curve.y, strict=True))
        style = f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2" fill="none"'
        style += f' stroke-dasharray="{DASHES[number // 4 % len(DASHES)]}"'
        y = TOP + 14 + 22 * number
        parts.append(f'<polyline points="{points}" {style}/>')
        parts.append(f'<path d="M{right + 16} {y - 4} h28" {style}/>')
        parts.append(f'<text x="{right + 52}" y="{y}">{html.escape(curve.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"

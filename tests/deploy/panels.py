"""The panels of the Grafana dashboards, asked of a Prometheus over the time of a run: each must have data, and is drawn.

What a panel shows by its own nature only in other runs is in REASONS, by the query.
"""

import json
import math
import re
from pathlib import Path

import check

# Seconds between two points.
STEP = 2
# Why a query has no data in a run in which one job succeeds, a leader dies and an agent is drained.
REASONS = {
    "sum by (reason) (rate(foil_connections_closed_total[5m]))": "the coordinators closed no connection themselves",
    "max by (phase) (foil_gpu_memory_bytes)": "the ranks are on CPUs",
}


def dashboards() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((check.CHART / "monitoring").glob("*.json"))]


def legend(form: str, labels: dict[str, str]) -> str:
    """A series' name, as Grafana makes it of legendFormat."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found.group(1), ""), form)


def series(prometheus, target: dict, began: float, ended: float) -> dict[str, tuple[list[float], list[float]]]:
    """Times in seconds since the start and values of each series of a query, without those that are no numbers."""
    found = {}
    for each in prometheus.query_range(target["expr"], began, ended, STEP):
        points = [(float(at) - began, float(value)) for at, value in each["values"]]
        points = [(at, value) for at, value in points if math.isfinite(value)]
        if points:
            name = legend(target.get("legendFormat", ""), each["metric"])
            assert name not in found, f"two series of `{target['expr']}` are called {name!r}: legendFormat must tell them apart"
            found[name] = [at for at, _ in points], [value for _, value in points]
    return found


def gather(prometheus, began: float, ended: float) -> tuple[list[tuple[dict, list[tuple[dict, dict]]]], list[str]]:
    """Each dashboard with its panels and their series, and the queries that have no data although there is no reason for it."""
    problems, gathered = [], []
    for dashboard in dashboards():
        panels = []
        for panel in dashboard["panels"]:
            shown = {}
            for target in panel["targets"]:
                found = series(prometheus, target, began, ended)
                if not found and target["expr"] not in REASONS:
                    problems.append(f"{dashboard['title']}, {panel['title']}: `{target['expr']}` has no data")
                shown |= found
            panels.append((panel, shown))
        gathered.append((dashboard, panels))
    return gathered, problems


def draw(gathered: list, ended: float, file: Path) -> None:
    """One picture of all dashboards, their panels where Grafana puts them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = [(dashboard, panel, shown) for dashboard, panels in gathered for panel, shown in panels]
    heights = {dashboard["title"]: max(p["gridPos"]["y"] + p["gridPos"]["h"] for p, _ in panels) + 1 for dashboard, panels in gathered}
    tops = dict(zip(heights, [sum(list(heights.values())[:index]) for index in range(len(heights))], strict=True))
    rows = sum(heights.values())
    figure = pyplot.figure(figsize=(24, rows * 0.55), layout="none")
    grid = figure.add_gridspec(rows, 24, hspace=4, wspace=3, left=0.03, right=0.99, top=0.99, bottom=0.01)
    for dashboard, panel, shown in places:
        x, y, width, height = (panel["gridPos"][key] for key in "xywh")
        y += tops[dashboard["title"]]
        axes = figure.add_subplot(grid[y + 1 : y + height, x : x + width])
        axes.set_title(f"{dashboard['title'].removeprefix('Foil / ')}: {panel['title']}", fontsize=11, loc="left")
        if panel["type"] == "stat":
            text = ", ".join(f"{name} {values[-1]:g}".strip() for name, (_, values) in shown.items())
            axes.text(0.5, 0.5, text or "no data", ha="center", va="center", fontsize=28)
            axes.set_axis_off()
            continue
        for name, (times, values) in shown.items():
            # No line over a time without data.
            gaps = [at + STEP for at, after in zip(times, times[1:]) if after - at > 1.5 * STEP]
            points = sorted([*zip(times, values), *((gap, math.nan) for gap in gaps)], key=lambda point: point[0])
            axes.plot(*zip(*points), label=name or "value", marker=".", markersize=3)
        unit = panel["fieldConfig"]["defaults"].get("unit", "")
        axes.set_ylabel(unit, fontsize=8)
        axes.set_xlim(0, ended)
        axes.grid(alpha=0.3)
        if shown:
            axes.legend(fontsize=8, ncols=2, loc="best", framealpha=0.6)
    figure.savefig(file, dpi=60)
    pyplot.close(figure)

"""The Markdown report of the speed benchmark."""

import statistics
from collections.abc import Sequence
from typing import Any

STOCK = "peer, as it comes"
"""The baseline of all ratios: the peer with default settings."""
COLUMNS = ("", "s an image", "times as fast", "of processor time", "s a U-Net call", "GFLOP/s", "peak GiB")
OWN_STEPS, SHORT = 50, (2, 4)
"""Steps of an image, and of the two short runs from which the time of a slow image is computed."""


def image(row: dict[str, float], key: str = "seconds") -> float:
    return row.get(key, row.get(f"computed_{key}", float("nan")))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median, minimum and maximum as text."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def markdown(report: dict[str, Any], earlier: dict[str, Any] | None = None) -> str:
    """Return the report as Markdown, also compared with an earlier one."""
    machine, top = report["machine"], report["ceiling"]
    ceilings = " and ".join(f"{speed:.0f} GFLOP/s in {name}" for name, speed in top.items())
    lines = [
        (
            f"{machine['cpu']}, {report['threads']} threads of {machine['cores']}, torch {machine['torch']}, "
            f"{machine['time']}; load {machine['load_before'][0]:.1f} before, {report['load_after'][0]:.1f} after. "
            f"A matrix product reaches {ceilings}. "
            "Medians [least, most] of the rounds; ratios are of the same round."
        )
    ]
    for size, results in report["sizes"].items():
        before = (earlier or {}).get("sizes", {}).get(size, {}).get("rounds", {})
        columns = [*COLUMNS, *(["against the earlier run"] if before else [])]
        lines += ["", f"### {size}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for name, rows in results["rounds"].items():
            lines.append(_line(name, rows, results, before.get(name)))
        if size == "published":
            lines += ["", f"Images of {OWN_STEPS} steps are computed from runs of {SHORT[0]} and {SHORT[1]} steps."]
    return "\n".join(lines) + "\n"


def _line(
    name: str, rows: list[dict[str, float]], results: dict[str, Any], before: list[dict[str, float]] | None
) -> str:
    stock = results["rounds"].get(STOCK)
    cells = [name, spread([image(row) for row in rows])]
    for key in ("seconds", "cpu"):
        ratios = [image(a, key) / image(b, key) for a, b in zip(stock, rows, strict=True)] if stock else []
        cells.append(spread(ratios) if ratios else "")
    calls = [row["call_seconds"] for row in rows if "call_seconds" in row]
    cells += [spread(calls, 3), f"{results['gflop'] / statistics.median(calls):.0f}"] if calls else ["", ""]
    cells.append(f"{max(row['peak'] for row in rows):.2f}")
    if before is not None:
        cells.append(f"{statistics.median(map(image, before)) / statistics.median(map(image, rows)):.2f} x")
    return "| " + " | ".join(cells) + " |"

"""A report as a page: every picture beside its reference and its scores. One HTML file, paths relative to it."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import quote

from blip_diffusion.evaluation.generators.conditions import ABOUT
from blip_diffusion.evaluation.metrics.aggregate import Verdict
from blip_diffusion.evaluation.metrics.statistics import Estimate
from blip_diffusion.evaluation.reporting.schema import Picture, Report, asked, summary
from blip_diffusion.fileio import write_text

PAGE = "index.html"
KINDS = {"scene": "new scene", "accessory": "accessory", "property": "changed property"}
STYLE = """
:root { --ink: #1d2433; --soft: #667085; --line: #e4e7ec; --paper: #fbfbfa; --card: #fff; --accent: #3157d5;
  --good: #1a7f4b; --bad: #b42318; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #98a2b3; --line: #2d3442; --paper: #14171d;
  --card: #1c212a; --accent: #8ea8ff; --good: #5fd39a; --bad: #ff8a7e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.02em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .75rem; }
p, li { max-width: 78ch; } .soft { color: var(--soft); font-size: .88rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 1rem; margin: 1.75rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.1rem 1.25rem; }
.tile b { display: block; font-size: 2.1rem; line-height: 1.15; font-variant-numeric: tabular-nums; }
.warn { border-color: var(--bad); } .warn b { color: var(--bad); }
.scale { position: relative; height: 6px; border-radius: 3px; background: var(--line); margin: .7rem 0 .3rem; }
.scale i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--accent); opacity: .35; }
.scale u { position: absolute; top: -4px; width: 3px; height: 14px; border-radius: 2px; background: var(--accent); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; } td small { color: var(--soft); display: block; } tr.own td { font-weight: 600; }
.subject { display: grid; grid-template-columns: 148px 1fr; gap: 1.25rem; padding: 1.5rem 0;
  border-top: 1px solid var(--line); } .who { position: sticky; top: 1rem; align-self: start; }
.who img { width: 148px; border-radius: 12px; display: block; } .who h3 { margin: .6rem 0 0; font-size: 1.05rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: .9rem; }
figure { margin: 0; } figure img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 10px;
  display: block; }
figcaption { font-size: .8rem; line-height: 1.35; margin-top: .35rem; }
.yes, .no { white-space: nowrap; } .yes { color: var(--good); } .no { color: var(--bad); }
.marks { color: var(--soft); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1rem; }
@media (max-width: 640px) { .subject { grid-template-columns: 1fr; } .who { position: static; } }
"""


def write_page(report: Report, out: Path) -> Path:
    """Writes `index.html`."""
    write_text(out / PAGE, page(report))
    return out / PAGE


def page(report: Report) -> str:
    """The whole page."""
    title = escape(f"{report.settings['model']} on {report.settings['bench']}: {report.method}")
    body = "\n".join([*_head(report, title), *_tables(report), *_pairs(report), *_subjects(report)])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _head(report: Report, title: str) -> Iterator[str]:
    yield f'<h1>{title}</h1><p class="soft">{escape(asked(report))}</p><div class="tiles">'
    subject, text = report.headline("subject"), report.headline("text")
    if subject is not None:
        yield _tile(
            subject, report, "fidelity", "likeness", "the subject, between another instance (0) and the truth (1)"
        )
    if text is not None:
        yield _tile(text, report, "named", "named", "the prompt, as a share of what is recognised in the truth")
    copied = {None: "not checked", False: "no", True: "yes"}[report.copied]
    warned = " warn" if report.copied else ""
    yield f'<div class="tile{warned}"><b>{copied}</b>copies its reference<p class="soft">'
    yield "Flagged where subjects are more like the reference than the ground truth is, and prompts count for nothing."
    yield "</p></div></div>"
    lines = [line.replace("**", "") for line in summary(report)]
    if report.diversity:
        lines.append(f"Diversity, the distance (1 - cosine) among the seeds of a prompt: {report.diversity}.")
    yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _tile(verdict: Verdict, report: Report, between: str, metric: str, words: str) -> str:
    known = verdict.between.get(between)
    value = known or verdict.rows[report.method][metric]
    said = words if known else verdict.card.metrics[metric]
    return (
        f'<div class="tile"><b>{value.value:.2f}</b>{escape(said)}{_scale(value)}<span class="soft">'
        f"{value.low:.2f} to {value.high:.2f}, by {escape(verdict.card.name)}</span></div>"
    )


def _scale(value: Estimate) -> str:
    low, at, high = (min(max(number, 0.0), 1.0) * 100 for number in (value.low, value.value, value.high))
    bar = f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i><u style="left:{at:.1f}%"></u>'
    return f'<div class="scale">{bar}</div>'


def _tables(report: Report) -> Iterator[str]:
    for verdict in report.verdicts:
        card = verdict.card
        metrics = [m for m in card.metrics if any(m in scores for scores in verdict.rows.values())]
        yield f'<h2>Judge: {escape(card.name)}</h2><p class="soft">{escape(card.backbone)}; '
        yield f"{escape(card.preprocessing)}. Score: {escape(card.protocol)}."
        if card.family == report.generator:
            yield "<strong>Of the family of the generator's own image encoder.</strong>"
        yield '</p><div class="wide"><table><tr><th>pictures</th>'
        yield "".join(f"<th>{escape(card.metrics[m])}</th>" for m in metrics) + "</tr>"
        for row, scores in verdict.rows.items():
            own = ' class="own"' if row == report.method else ""
            cells = "".join(f"<td>{_cell(scores.get(m))}</td>" for m in metrics)
            yield f"<tr{own}><td>{escape(row)}<small>{escape(ABOUT.get(row, ''))}</small></td>{cells}</tr>"
        yield "</table></div>"


def _cell(value: Estimate | None) -> str:
    return "" if value is None else f"{value.value:.3f}<small>{value.low:.3f} to {value.high:.3f}</small>"


def _pairs(report: Report) -> Iterator[str]:
    if not report.neighbours:
        return
    yield '<h2>Nearest training pictures</h2><p class="soft">A result at the left, and at the right the nearest of '
    yield "what the generator may have been trained on. Twins would be memorised.</p>"
    yield '<div class="pairs">'
    for one in sorted(report.neighbours, key=lambda one: -one.cosine):
        yield f'<figure><div class="pair">{_image(one.file)}{_image(one.nearest)}</div>'
        yield f"<figcaption>cosine {one.cosine:.2f}</figcaption></figure>"
    yield "</div>"


def _subjects(report: Report) -> Iterator[str]:
    yield '<h2>Every picture</h2><p class="soft">Likeness to the reference; a tick where the judge recognises the '
    yield "subject among all, and the prompt among all.</p>"
    for name in report.settings["subjects"]:
        category = report.categories[name]
        yield f'<section class="subject"><div class="who">{_image(report.references[name])}'
        yield f'<h3>{escape(name)}</h3><span class="soft">{escape(category)}</span></div><div class="pictures">'
        for i, picture in enumerate(report.pictures):
            if picture.subject == name:
                yield _figure(report, i, picture)
        yield "</div></section>"


def _figure(report: Report, i: int, picture: Picture) -> str:
    marks = []
    subject, text = report.headline("subject"), report.headline("text")
    if subject is not None:
        marks.append(f"{subject.pictures['likeness'][i]:.2f} {_mark(subject.pictures['named'][i], 'subject')}")
    if text is not None:
        marks.append(_mark(text.pictures["named"][i], "prompt"))
    return (
        f'<figure title="{escape(KINDS.get(picture.kind, picture.kind))}">{_image(picture.file)}'
        f'<figcaption>{escape(picture.sentence)}<br><span class="marks">{" ".join(marks)}</span></figcaption></figure>'
    )


def _mark(value: float | None, word: str) -> str:
    return f'<span class="yes">✓ {word}</span>' if value else f'<span class="no">✗ {word}</span>'


def _image(path: str) -> str:
    return f'<img src="{escape(quote(path))}" alt="" loading="lazy">'

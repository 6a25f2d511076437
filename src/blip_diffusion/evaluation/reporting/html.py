"""A report as a web page: every image with its reference and its scores. One HTML file with relative paths."""

from collections.abc import Iterator
from html import escape
from urllib.parse import quote

from blip_diffusion.evaluation.generators.conditions import DESCRIPTIONS
from blip_diffusion.evaluation.metrics.aggregate import MetricResult
from blip_diffusion.evaluation.metrics.similarity import ACCURACY
from blip_diffusion.evaluation.metrics.statistics import Estimate
from blip_diffusion.evaluation.reporting.markdown import describe_settings, normalized_label, shown_scores, summary
from blip_diffusion.evaluation.reporting.schema import Report, ReportImage

KINDS = {"scene": "new scene", "accessory": "accessory", "property": "changed property"}
STYLE = """
:root { --ink: #1d2433; --soft: #667085; --line: #e4e7ec; --paper: #fbfbfa; --info: #fff; --accent: #3157d5;
  --good: #1a7f4b; --bad: #b42318; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #98a2b3; --line: #2d3442; --paper: #14171d;
  --info: #1c212a; --accent: #8ea8ff; --good: #5fd39a; --bad: #ff8a7e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.02em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .75rem; }
p, li { max-width: 78ch; } .soft { color: var(--soft); font-size: .88rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 1rem; margin: 1.75rem 0; }
.tile { background: var(--info); border: 1px solid var(--line); border-radius: 14px; padding: 1.1rem 1.25rem; }
.tile b { display: block; font-size: 2.1rem; line-height: 1.15; font-variant-numeric: tabular-nums; }
.warn { border-color: var(--bad); } .warn b { color: var(--bad); }
.scale { position: relative; height: 6px; border-radius: 3px; background: var(--line); margin: .7rem 0 .3rem; }
.scale i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--accent); opacity: .35; }
.scale u { position: absolute; top: -4px; width: 3px; height: 14px; border-radius: 2px; background: var(--accent); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; } td small { color: var(--soft); display: block; } tr.own td { font-weight: 600; }
.subject { display: grid; grid-template-columns: 148px 1fr; gap: 1.25rem; padding: 1.5rem 0;
  border-top: 1px solid var(--line); } .reference { position: sticky; top: 1rem; align-self: start; }
.reference img { width: 148px; border-radius: 12px; display: block; }
.reference h3 { margin: .6rem 0 0; font-size: 1.05rem; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: .9rem; }
figure { margin: 0; } figure img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 10px;
  display: block; }
figcaption { font-size: .8rem; line-height: 1.35; margin-top: .35rem; }
.yes, .no { white-space: nowrap; } .yes { color: var(--good); } .no { color: var(--bad); }
.marks { color: var(--soft); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1rem; }
@media (max-width: 640px) { .subject { grid-template-columns: 1fr; } .reference { position: static; } }
"""


def page(report: Report) -> str:
    """Render the whole page."""
    title = escape(f"{report.settings['model']} on {report.settings['benchmark']}: {report.condition}")
    body = "\n".join([*_head(report, title), *_tables(report), *_nearest_pairs(report), *_subjects(report)])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _head(report: Report, title: str) -> Iterator[str]:
    yield f'<h1>{title}</h1><p class="soft">{escape(describe_settings(report))}</p><div class="tiles">'
    subject, text = report.headline("subject"), report.headline("text")
    if subject is not None:
        words = f"subject fidelity, {normalized_label(subject.info, lower_case=True)}"
        yield _tile(subject, report, "fidelity", subject.info.main, words)
    if text is not None:
        words = "prompt fidelity: top-1 accuracy, divided by the accuracy on the ground truth"
        yield _tile(text, report, ACCURACY, ACCURACY, words)
    label = {None: "not checked", False: "no", True: "yes"}[report.copies_reference]
    warned = " warn" if report.copies_reference else ""
    yield f'<div class="tile{warned}"><b>{label}</b>copies its reference<p class="soft">'
    yield "Flagged if images are more similar to the reference than the ground truth is, and prompts have no effect."
    yield "</p></div></div>"
    lines = [line.replace("**", "") for line in summary(report)]
    if report.diversity:
        lines.append(f"Diversity, 1 - cosine between the samples of a prompt: {report.diversity}.")
    yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _tile(result: MetricResult, report: Report, normalized: str, score: str, words: str) -> str:
    known = result.normalized.get(normalized)
    value = known or result.conditions[report.condition][score]
    label = words if known else result.info.scores[score]
    return (
        f'<div class="tile"><b>{value.value:.2f}</b>{escape(label)}{_scale(value)}<span class="soft">'
        f"{value.low:.2f} to {value.high:.2f}, by {escape(result.info.name)}</span></div>"
    )


def _scale(value: Estimate) -> str:
    low, at, high = (min(max(number, 0.0), 1.0) * 100 for number in (value.low, value.value, value.high))
    bar = f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i><u style="left:{at:.1f}%"></u>'
    return f'<div class="scale">{bar}</div>'


def _tables(report: Report) -> Iterator[str]:
    for result in report.results:
        info, names = result.info, shown_scores(result)
        yield f'<h2>Metric: {escape(info.name)}</h2><p class="soft">{escape(info.backbone)}; '
        yield f"{escape(info.preprocessing)}. Score: {escape(info.protocol)}."
        if info.family == report.generator_family:
            yield "<strong>Of the same family as the generator's image encoder.</strong>"
        yield '</p><div class="wide"><table><tr><th>condition</th>'
        yield "".join(f"<th>{escape(info.scores[name])}</th>" for name in names) + "</tr>"
        for condition, scores in result.conditions.items():
            css = ' class="own"' if condition == report.condition else ""
            cells = "".join(f"<td>{_cell(scores.get(name))}</td>" for name in names)
            label = f"{escape(condition)}<small>{escape(DESCRIPTIONS.get(condition, ''))}</small>"
            yield f"<tr{css}><td>{label}</td>{cells}</tr>"
        yield "</table></div>"


def _cell(value: Estimate | None) -> str:
    return "" if value is None else f"{value.value:.3f}<small>{value.low:.3f} to {value.high:.3f}</small>"


def _nearest_pairs(report: Report) -> Iterator[str]:
    if not report.nearest_training_images:
        return
    yield '<h2>Nearest training images</h2><p class="soft">Left: a generated image. Right: the training image closest '
    yield "to it. An identical pair would be memorised.</p>"
    yield '<div class="pairs">'
    for one in sorted(report.nearest_training_images, key=lambda one: -one.cosine):
        yield f'<figure><div class="pair">{_image(one.file)}{_image(one.nearest)}</div>'
        yield f"<figcaption>cosine {one.cosine:.2f}</figcaption></figure>"
    yield "</div>"


def _subjects(report: Report) -> Iterator[str]:
    yield '<h2>All images</h2><p class="soft">Similarity to the reference, and whether the metric ranks the '
    yield "subject and the prompt first among all of the benchmark.</p>"
    for name in report.settings["subjects"]:
        category = report.categories[name]
        yield f'<section class="subject"><div class="reference">{_image(report.references[name])}'
        yield f'<h3>{escape(name)}</h3><span class="soft">{escape(category)}</span></div><div class="samples">'
        for i, image in enumerate(report.images):
            if image.subject == name:
                yield _figure(report, i, image)
        yield "</div></section>"


def _figure(report: Report, i: int, image: ReportImage) -> str:
    marks = []
    subject, text = report.headline("subject"), report.headline("text")
    if subject is not None:
        value = subject.images[subject.info.main][i]
        marks.append("" if value is None else f"{value:.2f}")
        if ACCURACY in subject.images:
            marks.append(_mark(subject.images[ACCURACY][i], "subject"))
    if text is not None:
        marks.append(_mark(text.images[ACCURACY][i], "prompt"))
    return (
        f'<figure title="{escape(KINDS.get(image.kind, image.kind))}">{_image(image.file)}'
        f'<figcaption>{escape(image.prompt)}<br><span class="marks">{" ".join(marks)}</span></figcaption></figure>'
    )


def _mark(value: float | None, word: str) -> str:
    return f'<span class="yes">✓ {word}</span>' if value else f'<span class="no">✗ {word}</span>'


def _image(path: str) -> str:
    return f'<img src="{escape(quote(path))}" alt="" loading="lazy">'

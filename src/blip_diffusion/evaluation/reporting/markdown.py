"""A report as Markdown, and the sentences that all its views share."""

from blip_diffusion.evaluation.generators.conditions import (
    DESCRIPTIONS,
    OTHER_SUBJECT,
    SHUFFLED_PROMPTS,
    VAE_RECONSTRUCTION,
)
from blip_diffusion.evaluation.metrics.aggregate import MetricResult
from blip_diffusion.evaluation.metrics.similarity import ACCURACY, MetricInfo
from blip_diffusion.evaluation.reporting.schema import Report

NORMALIZED_LABELS = {
    "subject": "Between {} (0) and {} (1)",
    "text": "Accuracy, divided by the accuracy on the VAE reconstruction of the ground truth",
}
BOUNDS = {
    "other-instance": "another instance",
    "ground-truth": "the ground truth",
    OTHER_SUBJECT: "another subject",
    VAE_RECONSTRUCTION: "the VAE reconstruction of the ground truth",
}
"""Bounds of subject scores, in words."""
COPYING = {
    None: "Copying: not checked, because a subject metric or a text metric is missing.",
    False: "Copying: no sign that the reference is copied.",
    True: "COPYING: images are more similar to the reference than the ground truth is, and prompts are followed no "
    "better than by chance. This condition copies its reference.",
}


def markdown(report: Report) -> str:
    """Write the settings, the headline, and one table for each metric: two metrics never share a table."""
    lines = [f"# {report.settings['model']} on {report.settings['benchmark']}, {report.condition}", ""]
    lines += [describe_settings(report), ""]
    lines += [f"* {line}" for line in summary(report)]
    for result in report.results:
        lines += [
            "",
            f"## Metric: {result.info.name}",
            "",
            describe_metric(report, result),
            "",
            *_table(report, result),
        ]
    if report.diversity:
        lines += ["", "## Diversity", "", f"1 - cosine between the samples of a prompt: {report.diversity}."]
    if nearest := report.nearest_training_images:
        mean = sum(one.cosine for one in nearest) / len(nearest)
        lines += ["", "## Nearest training images", ""]
        lines += [
            f"Mean centred cosine of {len(nearest)} images to the nearest: {mean:.3f}; index.html shows each pair."
        ]
    return "\n".join(lines) + "\n"


def describe_settings(report: Report) -> str:
    """Name every setting that a score depends on."""
    s = report.settings
    seeds = f"{s['seeds']} {'seed' if s['seeds'] == 1 else 'seeds'}"
    noise = "" if s["noise_scale"] == 1 else f", noise times {s['noise_scale']:g}"
    speed = "" if s["preset"] == "none" else f", preset {s['preset']}"
    speed += "" if s["engine"] == "torch" else f", run by {s['engine']}"
    speed += "" if s["dtype"] == "float32" else f", in {s['dtype']}"
    return (
        f"{len(s['subjects'])} subjects x {len(s['prompts'])} prompts x {seeds} = {len(report.images)} "
        f"images of {s['image_size']} pixels; {s['scheduler']}, {s['steps']} steps, guidance {s['guidance_scale']:g}"
        f"{noise}{speed}; weights {s['weights']}, benchmark {s['benchmark_digest']}, protocol {report.protocol}. "
        f"{_describe_condition(report)}. Means over subjects, with 95 % bootstrap intervals over them."
    )


def _describe_condition(report: Report) -> str:
    s = report.settings
    if report.condition in DESCRIPTIONS:
        article = "an" if DESCRIPTIONS[report.condition][0] in "aeiou" else "a"
        return f"{report.condition} is {article} {DESCRIPTIONS[report.condition]}"
    if report.condition == "tuned":
        steps = f"{s['tuning_steps']} steps" if s["tuning_steps"] else "as many steps as scored best"
        return f"Few-shot tuning ({s['tuning_trainable']}, {steps}) on {s['reference']}"
    return f"Zero-shot from one reference: {s['reference']}"


def summary(report: Report) -> list[str]:
    """Write the headline: subject fidelity, prompt fidelity, and whether the reference is copied."""
    lines = []
    subject, text = report.headline("subject"), report.headline("text")
    if subject is not None:
        same_family = subject.info.family == report.generator_family
        note = " (of the same family as the generator's image encoder)" if same_family else ""
        lines.append(f"Subject, by {subject.info.name}{note}: {_subject_sentence(report, subject)}")
    if text is not None:
        lines.append(f"Prompt, by {text.info.name}: {_text_sentence(report, text)}")
    return [*lines, COPYING[report.copies_reference]]


def _subject_sentence(report: Report, result: MetricResult) -> str:
    info = result.info
    words = f"{info.scores[info.main]} **{result.conditions[report.condition][info.main]}**"
    if fidelity := result.normalized.get("fidelity"):
        words += f"; {normalized_label(info, lower_case=True)}: **{fidelity}**"
    if "ground-truth" in result.conditions and ACCURACY in info.scores:
        words += f". Top-1 accuracy on the ground truth: {result.conditions['ground-truth'][ACCURACY].value:.2f}"
    return f"{words}."


def _text_sentence(report: Report, result: MetricResult) -> str:
    words = f"top-1 accuracy **{result.conditions[report.condition][ACCURACY]}**"
    if share := result.normalized.get(ACCURACY):
        words += f", which is **{share}** of the accuracy on the ground truth"
    if VAE_RECONSTRUCTION in result.conditions:
        words += f" ({result.conditions[VAE_RECONSTRUCTION][ACCURACY].value:.2f})"
    return f"{words}; against the next prompt, {result.conditions[SHUFFLED_PROMPTS][ACCURACY].value:.2f}."


def normalized_label(info: MetricInfo, *, lower_case: bool = False) -> str:
    """Return a label that explains 0 and 1 of a normalized score."""
    label = NORMALIZED_LABELS[info.kind].format(*(BOUNDS[name] for name in info.bounds))
    return label[0].lower() + label[1:] if lower_case else label


def describe_metric(report: Report, result: MetricResult) -> str:
    """Describe a metric in one paragraph."""
    info = result.info
    same_family = " **Of the same family as the generator's image encoder.**" * (info.family == report.generator_family)
    return f"{info.backbone}; {info.preprocessing}.{same_family} Score: {info.protocol}."


def shown_scores(result: MetricResult) -> list[str]:
    """List the scores that any condition has."""
    return [name for name in result.info.scores if any(name in scores for scores in result.conditions.values())]


def _table(report: Report, result: MetricResult) -> list[str]:
    names = shown_scores(result)
    lines = [f"| condition | {' | '.join(result.info.scores[name] for name in names)} |", "|---|" + "---|" * len(names)]
    for condition, scores in result.conditions.items():
        cells = [str(scores[name]) if name in scores else "" for name in names]
        lines.append(f"| {_label(report, condition)} | {' | '.join(cells)} |")
    if result.normalized:
        known = [f"{result.info.scores.get(name, name)} {value}" for name, value in result.normalized.items()]
        lines += ["", f"{normalized_label(result.info)}: {'; '.join(known)}."]
    return lines


def _label(report: Report, condition: str) -> str:
    if condition == report.condition:
        return f"**{condition}**"
    return f"{condition}: {DESCRIPTIONS[condition]}" if condition in DESCRIPTIONS else condition

"""What preflight found, as text for a person."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lvis_rcnn.dataset.checks import Problem

# Of a common large GPU; preflight need not run where the training does.
GPU_GB = 80


@dataclass
class Page:
    """Errors, warnings and figures."""

    errors: list[Problem] = field(default_factory=list)
    missing_images: list[str] = field(default_factory=list)
    """Names of all missing images; an error counts them and names the first."""
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def page_text(page: Page) -> str:
    """The page for a person."""
    facts = page.facts
    schedule = facts["schedule"]
    verdict = f"FAILED, {len(page.errors)} error(s)" if page.errors else "ok"
    checked = "image files checked" if facts["images_checked"] else "image files NOT checked"
    lines = [f"Preflight of study {facts['study']}: {verdict}, {len(page.warnings)} warning(s), {checked}", ""]
    for title, entries in (("Errors", page.errors), ("Warnings", page.warnings)):
        if entries:
            lines += [title, *(f"  {number}. {entry}" for number, entry in enumerate(entries, start=1)), ""]
    lines.append(f"{'Data: ' + facts['dataset']:28}{'train':>21}{'val':>21}")
    for key in {**facts["train"], **facts["val"]}:
        if key != "annotations_sha256":
            cells = (f"{readable(facts[split].get(key, 0)):>21}" for split in ("train", "val"))
            lines.append(f"  {key.replace('_', ' '):26}{''.join(cells)}")
    lines += [f"  {facts['annotations']}"] if "annotations" in facts else []
    lines += ["", "Oversampling"]
    figures = {key: value for key, value in facts["repeat_factors"].items() if key != "why_none" or value}
    lines += [f"  {key.replace('_', ' '):26}{readable(value)}" for key, value in figures.items()]
    lines += [
        "",
        "Training, each run",
        f"  {schedule['steps']:,} steps of {schedule['images_per_step']} images: {schedule['images_seen']:,} seen",
        f"  {epoch_line(facts)}",
        f"  so {schedule['epochs']:.2f} epochs; 2x, {schedule['epochs_of_2x']} epochs, is "
        f"{schedule['steps_of_2x']:,} steps, {schedule['images_of_2x']:,} images seen",
        f"  {facts['learning_rate']}",
        f"  backbones: {', '.join(facts['backbones'])}; seeds: {', '.join(map(str, facts['seeds']))}",
        f"  initial weights: {facts['weights']}",
        "",
        *price_lines(facts),
        *memory_lines(facts),
    ]
    return "\n".join(lines) + "\n"


def price_lines(facts: dict[str, Any]) -> Iterator[str]:
    """What the trainings cost by their arithmetic."""
    price, seeds = facts["price"], len(facts["seeds"])
    whole = seeds * sum(of["hours"] for of in price["of_a_run"].values())
    yield f"Price of all trainings, estimated from arithmetic: {whole:,.2g} {price['unit']} of {price['estimated_for']}"
    yield "  (how good that is: docs/performance.md; of measured steps, as soon as there are any: status --plan)"
    for name, of in price["of_a_run"].items():
        each = f", each of {seeds} seeds" if seeds > 1 else ""
        yield f"  {name:12}{of['tflop_per_image']:6.3g} TFLOP an image, {of['hours']:,.2g} {price['unit']}{each}"


def memory_lines(facts: dict[str, Any]) -> Iterator[str]:
    """Memory of a training step; nothing for a training on a CPU."""
    group, images = facts["schedule"]["normalisation_group"], facts["schedule"]["images_per_step"]
    if facts["gpu_memory"]:
        yield "\nMemory of a training step on one GPU, at least, by images in one pass (tf32 as fp32)"
    for name, of_precisions in facts["gpu_memory"].items():
        for precision, of in of_precisions.items():
            sizes = f"{group} images {of['group_gb']:5.1f} GB, {images} images {of['step_gb']:5.1f} GB"
            fitting = f"{GPU_GB} GB hold {of['groups_at_once']} of {images // group} groups at once"
            yield f"  {name:12}{precision:6}{sizes}; {fitting}"


def epoch_line(facts: dict[str, Any]) -> str:
    """Length of an epoch; its mean if every epoch is drawn anew."""
    schedule, factors = facts["schedule"], facts["repeat_factors"]
    first = f"{schedule['epoch_length']:,} images, {schedule['steps_in_epoch']:,} steps"
    if factors["rounding"] == "ceil":
        return f"an epoch is {first}"
    mean = f"{factors['expected_epoch_length']:,.1f} images on average"
    return f"an epoch is {mean} ({factors['rounding']} rounding), the first {first}"


def readable(value: Any) -> str:
    """A cell of the page."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return str(value or "-")

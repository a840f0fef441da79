"""What preflight found, for a person (preflight.txt) and for a program (preflight.json)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvis_rcnn.annotations import AnnotationStore
from lvis_rcnn.command import InputError
from lvis_rcnn.config import Study
from lvis_rcnn.files import atomic_file, write_json
from lvis_rcnn.image_checks import Problem
from lvis_rcnn.lvis_versions import version_of
from lvis_rcnn.repeat_factors import EPOCHS_OF_2X, RepeatFactors, summary
from lvis_rcnn.schedule import Recipe


@dataclass
class Page:
    """What was found."""

    errors: list[Problem] = field(default_factory=list)
    missing_images: list[str] = field(default_factory=list)
    """Names of all of them; an error counts them and names the first."""
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def facts(
    study: Study,
    train: AnnotationStore,
    val: AnnotationStore,
    factors: RepeatFactors,
    recipe: Recipe,
    *,
    images_checked: bool,
) -> dict[str, Any]:
    """Figures of the page."""
    splits = {
        name: {
            "source": store.source_name,
            "annotations_sha256": store.annotations_sha256,
            "version": version_name(store),
            **store.counts,
        }
        for name, store in (("train", train), ("val", val))
    }
    return {
        "study": study.study,
        "dataset": study.dataset.name,
        "images_checked": images_checked,
        **splits,
        "repeat_factors": summary(factors),
        "schedule": schedule_facts(recipe),
        "learning_rate": recipe.rate_sentence,
        "weights": study.model.weights,
        "backbones": list(study.backbones),
        "seeds": list(study.seeds),
    }


def version_name(store: AnnotationStore) -> str:
    """What the page says of a file's version."""
    version = version_of(store.categories)
    return "not LVIS" if version is None else f"LVIS {version.name}"


def schedule_facts(recipe: Recipe) -> dict[str, Any]:
    """Budgets in steps and images: an epoch is a pass over the oversampled list, so "2x" says little without them."""
    steps_of_2x = recipe.stream.steps_before_epoch(EPOCHS_OF_2X)
    return {
        "images_per_step": recipe.images_per_step,
        "normalisation_group": recipe.schedule.normalisation_group,
        "epoch_length": recipe.epoch_length,
        "steps_in_epoch": recipe.steps_in_epoch,
        "steps": recipe.steps,
        "images_seen": recipe.images_seen,
        "epochs": recipe.epochs,
        "epochs_of_2x": EPOCHS_OF_2X,
        "steps_of_2x": steps_of_2x,
        "images_of_2x": recipe.stream.images_before_step(steps_of_2x),
        "learning_rate": recipe.peak_learning_rate,
    }


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
    lines.append(f"{'Data: ' + facts['dataset']:28}{'train':>24}{'val':>24}")
    for key, value in facts["train"].items():
        if key != "annotations_sha256":
            lines.append(f"  {key.replace('_', ' '):26}{readable(value):>24}{readable(facts['val'][key]):>24}")
    lines += ["", "Oversampling"]
    lines += [f"  {key.replace('_', ' '):26}{readable(value)}" for key, value in facts["repeat_factors"].items()]
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
    ]
    return "\n".join(lines) + "\n"


def epoch_line(facts: dict[str, Any]) -> str:
    """How long an epoch is, or how long on average where every epoch is drawn anew."""
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
    return f"{value:.4g}" if isinstance(value, float) else str(value or "-")


def write_page(page: Page, out: Path) -> None:
    """Write preflight.json and .txt; with errors preflight_failed.json and .txt, and leave neither of the two.

    The JSON lists every missing image.

    Raises:
        InputError: the page has errors; the first, with the way to the others.
    """
    failed = out.with_name(f"{out.stem}_failed.txt")
    for stale in (out, out.with_suffix(".txt"), failed, failed.with_suffix(".json")):
        stale.unlink(missing_ok=True)
    with atomic_file(failed if page.errors else out.with_suffix(".txt")) as temporary:
        temporary.write_text(page_text(page), encoding="utf-8")
    content = {
        "errors": [error._asdict() for error in page.errors],
        "missing_images": page.missing_images,
        "warnings": page.warnings,
        "facts": page.facts,
    }
    if page.errors:
        write_json(failed.with_suffix(".json"), content)
        first, others = page.errors[0], len(page.errors) - 1
        mend = f"{first.mend} ({f'{others} more error(s), ' if others else ''}page: {failed})"
        raise InputError(first.where, first.what, allowed=first.allowed, mend=mend)
    write_json(out, content)

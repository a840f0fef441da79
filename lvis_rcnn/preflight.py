"""Check data and settings before training begins.

Both splits are compared with each other, with their image files and with the settings. The result is a page
(preflight.txt) and the same as preflight.json. With errors they are called preflight_failed.txt and .json, and the step
fails with the first error.

    python -m lvis_rcnn preflight --study configs/mini.yaml --train-store train.store --val-store val.store
        --train-images images --val-images images --out preflight.json
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from lvis_rcnn.config.protocols import MINIVAL
from lvis_rcnn.config.schema import BACKBONES, Augmentation, Evaluation, Inference, Model
from lvis_rcnn.config.study import Study, load_study_for_step, zoo_of
from lvis_rcnn.config.zoo import initial_warnings, load_zoo
from lvis_rcnn.dataloader.repeat_factors import EPOCHS_OF_2X, RepeatFactors, Sampling, repeat_factors, summary, why_none
from lvis_rcnn.dataloader.sampler import stream_of
from lvis_rcnn.dataset.checks import (
    Problem,
    box_errors,
    category_errors,
    image_errors,
    images_of_train2017,
    label_errors,
    object_errors,
    overlap_warnings,
    rescale_warnings,
    split_warnings,
    version_errors,
)
from lvis_rcnn.dataset.store import AnnotationStore, open_store
from lvis_rcnn.dataset.versions import version_of
from lvis_rcnn.evaluation.subsets import IN_MINIVAL, read_ids
from lvis_rcnn.model.mask_rcnn import network_on_meta
from lvis_rcnn.reporting.preflight_text import GPU_GB, Page, page_text, price_lines
from lvis_rcnn.runs.price import DEVICES, estimated_hours, step_flops
from lvis_rcnn.runs.records import SEEN_BY_WEIGHTS
from lvis_rcnn.system.cli import InputError, add_output, log, run_step, step_parser
from lvis_rcnn.system.files import atomic_file, write_json
from lvis_rcnn.training.memory import step_memory
from lvis_rcnn.training.setup import require_memory_of_loader
from lvis_rcnn.training.solver import Recipe, make_recipe, point_errors

GB = 1e9
# At most this many categories are named in a warning.
NAMED_CATEGORIES = 20

# So many images are decoded without being asked for (resources.decode_images): about a minute.
DECODED_IMAGES = 5000

EXHAUSTIVE = (
    "Plain COCO, taken as exhaustive: AP is by LVIS's protocol and not COCO's AP (300 detections of an image count;"
    " those of a category that is not annotated in the image are wrong; those that match no object of a category with a"
    " crowd region there do not count; r, c, f follow from the training images)"
)


def preflight(
    study: Study, train: AnnotationStore, val: AnnotationStore, image_folders: tuple[Path, Path] | None
) -> Page:
    """Check two splits and the settings; with ``image_folders`` (train, val) None no image files.

    Raises:
        InputError: nothing is left to train on.
    """
    sampling = study.sampling
    settings = sampling.oversample_threshold, sampling.rounding, sampling.exponent, sampling.frequency
    factors = repeat_factors(train, *settings)
    # Of the first seed; others differ only in what stochastic rounding draws.
    stream = stream_of(Sampling(factors.image_factors, factors.rounding), train, study.schedule, study.seeds[0])
    recipe = make_recipe(study.schedule, stream)
    errors = [*category_errors(train, val), *label_errors(train), *label_errors(val)]
    errors += [*version_errors(train, study.dataset.name), *version_errors(val, study.dataset.name)]
    errors += [*box_errors(train), *box_errors(val), *object_errors(val)]
    errors += settings_errors(study.augmentation, study.model, study.inference)
    errors += protocol_errors(val, study.evaluation)
    errors += point_errors(recipe, study.evaluation)
    missing: list[str] = []
    skipped: list[str] = []
    doubtful: list[Problem] = []
    decode = study.resources.decode_images
    if decode is None:
        decode = train.num_images + val.num_images <= DECODED_IMAGES
    if image_folders is not None:
        for store, folder in zip((train, val), image_folders, strict=True):
            found = image_errors(store, folder, decode=decode)
            doubtful += found.warnings
            if store is train and study.augmentation.skip_broken_images and len(found.missing) < store.num_images:
                skipped += [f"{problem}; training skips it" for problem in found.problems]
                continue
            errors += found.problems
            missing += found.missing
    warnings = [
        *skipped,
        *map(str, doubtful),
        *split_warnings(train),
        *split_warnings(val),
        *frequency_warnings(train, val, factors),
    ]
    warnings += rescale_warnings(val, study.inference.short_edge_px, study.inference.long_edge_px)
    warnings += overlap_warnings(train, val, image_folders or (Path(), Path()))
    warnings += settings_warnings(recipe, study.model, factors)
    seen_images = images_of_train2017(val) if study.model.weights == "coco" else 0
    warnings += minival_warnings(val, study.evaluation)
    warnings += [*crowded_warnings(val, study), *leak_warnings(seen_images, val.num_images)]
    told = facts(study, train, val, factors, recipe, images_checked=image_folders is not None)
    if seen_images:
        told[SEEN_BY_WEIGHTS] = seen_images
    return Page(errors, missing, warnings, told)


def settings_errors(augmentation: Augmentation, model: Model, inference: Inference) -> Iterator[Problem]:
    """Settings that are valid each but not together."""
    edges = {
        "augmentation.short_edges_px": (max(augmentation.short_edges_px), augmentation.long_edge_px),
        "inference.short_edge_px": (inference.short_edge_px, inference.long_edge_px),
    }
    for key, (short_px, long_px) in edges.items():
        if short_px > long_px:
            what = f"{short_px} px is above long_edge_px, {long_px} px"
            yield Problem(key, what, f"at most {long_px}", "raise long_edge_px or lower the edge")
    if int(model.rois_per_image * model.roi_positive_fraction) < 1:
        what = f"{model.roi_positive_fraction} of {model.rois_per_image} regions leaves no positive one"
        yield Problem("model.roi_positive_fraction", what, "one region or more", "raise it or rois_per_image")


def protocol_errors(val: AnnotationStore, evaluation: Evaluation) -> Iterator[Problem]:
    """Protocols whose images the validation split does not have."""
    if MINIVAL in {one.subset for one in evaluation.asked_protocols} and not minival_images(val):
        what = f"has {MINIVAL}, but no image of {val.source_name} has {IN_MINIVAL.decode()} in its coco_url"
        yield Problem("evaluation.protocols", what, "protocols of images that are there", "leave minival out")
    for file in evaluation.subsets:
        if len(unknown := np.setdiff1d(read_ids(Path(file)), val.image_ids)):
            what = f"image id {unknown[0]} is not in {val.source_name}"
            yield Problem(file, what, "ids of its images", "correct the file, or leave it out of evaluation.subsets")


def minival_images(val: AnnotationStore) -> int:
    """Number of images of a split that are in minival."""
    return sum(IN_MINIVAL.decode() in val.image_name(image)[0] for image in range(val.num_images))


def minival_warnings(val: AnnotationStore, evaluation: Evaluation) -> Iterator[str]:
    """A minival of LVIS v1 val that has not the images of everyone else's."""
    asked = any(one.subset == MINIVAL for one in evaluation.asked_protocols)
    version = version_of(val.categories) if asked else None
    if version and val.num_images == version.splits["val"][0] and (found := minival_images(val)) != version.minival:
        yield f"{val.source_name}: minival has {found:,} images here, and {version.minival:,} elsewhere"


def frequency_warnings(train: AnnotationStore, val: AnnotationStore, factors: RepeatFactors) -> Iterator[str]:
    """Frequency groups, which are read from the files and never derived, where they may surprise."""
    frequencies = np.array([category.frequency for category in train.categories])
    # Gupta et al. 2019: rare is 1 to 10 training images, common 11 to 100, frequent more.
    binned = np.array(["r", "c", "f"])[np.digitize(factors.image_counts, [11, 101])]
    seen = factors.image_counts > 0
    if unlike := int((seen & (frequencies != binned)).sum()):
        yield (
            f"{train.source_name}: {unlike:,} of {int(seen.sum()):,} categories have a frequency that is not that of "
            "their images here (1-10 r, 11-100 c, more f); the file's is used"
        )
    if unseen := int((~seen).sum()):
        what = f"{unseen:,} of {len(seen):,} categories have no training image"
        yield f"{train.source_name}: {what}; {scored_without_training(val, seen)}"
    pairs = zip(train.categories, val.categories, strict=False)
    if differ := sum(ours.frequency != theirs.frequency for ours, theirs in pairs):
        yield (
            f"{val.source_name}: {differ:,} categories have another frequency (r, c, f) than in {train.source_name}; "
            f"APr, APc and APf follow {val.source_name}"
        )


def scored_without_training(val: AnnotationStore, seen: Bool[np.ndarray, " c"]) -> str:
    """What categories without training images do to the score: those with validation objects, by name."""
    labels = val.labels[val.is_scored]
    objects = np.bincount(labels[labels <= len(seen)], minlength=len(seen) + 1)[1:]
    names = [val.categories[at].name for at in np.flatnonzero(~seen & (objects > 0)) if at < len(val.categories)]
    if not names:
        return f"none of them has objects in {val.source_name}, so none is scored"
    others = f", ... ({len(names) - NAMED_CATEGORIES:,} more)" if len(names) > NAMED_CATEGORIES else ""
    listed = f"{', '.join(names[:NAMED_CATEGORIES])}{others}"
    return f"{len(names):,} of them, with objects in {val.source_name}, score 0 ({listed}), others are not scored"


def crowded_warnings(val: AnnotationStore, study: Study) -> Iterator[str]:
    """Images of which detections cannot find all objects, since fewer are kept or scored."""
    limit = min(study.inference.detections_per_image, study.evaluation.detections_per_image)
    objects_each = np.diff(np.append(0, np.cumsum(val.is_scored))[val.annotation_offsets])
    if images := int((objects_each > limit).sum()):
        lost = 1 - np.minimum(objects_each, limit).sum() / objects_each.sum()
        yield (
            f"{val.source_name}: {images:,} images hold more objects (up to {objects_each.max():,}) than the {limit} "
            f"detections of an image that count: {lost:.1%} of all objects cannot be found"
        )


def leak_warnings(seen_images: int, num_images: int) -> Iterator[str]:
    """Validation images that initial weights were trained on."""
    if seen_images:
        yield (
            f"model.weights: coco: {seen_images:,} of {num_images:,} validation images are of COCO train2017, which "
            "published COCO detectors were trained on, so AP is not of unseen images; start from imagenet, or score "
            "the images of val2017 alone"
        )


def settings_warnings(recipe: Recipe, model: Model, factors: RepeatFactors) -> Iterator[str]:
    """Settings that are legal but rarely meant."""
    schedule = recipe.schedule
    if factors.threshold is not None and (why := why_none(factors)):
        yield f"sampling.oversample_threshold repeats nothing: {why}"
    if schedule.warmup_steps >= recipe.steps:
        yield (
            f"schedule.warmup_steps is {schedule.warmup_steps:,} of {recipe.steps:,} steps: the rate is at its peak "
            "in the last step at most"
        )
    if late := [epoch for epoch in schedule.decay_at_epochs if schedule.epochs and epoch >= schedule.epochs]:
        yield f"schedule.decay_at_epochs: {late} are never reached in {schedule.epochs} epochs"
    if recipe.peak_learning_rate != schedule.learning_rate:
        yield f"schedule: {recipe.rate_sentence}"
    if model.normalization == "batch" and schedule.normalisation_group == 1:
        yield "model.normalization: batch statistics of a single image; use group, or a larger normalisation_group"


def machine_warnings(study: Study, results_dir: Path, num_labels: int) -> Iterator[str]:
    """Too little disk, too little shared memory for the loader, or less memory than a job asks for."""
    results_dir.mkdir(parents=True, exist_ok=True)
    needed_bytes = sum(run_bytes(study, row, num_labels) for row in study.rows_to_train) * len(study.seeds)
    free_bytes = shutil.disk_usage(results_dir).free
    if free_bytes < needed_bytes:
        yield (
            f"{results_dir}: {free_bytes / GB:.1f} GB free; checkpoints and models of the study take about "
            f"{needed_bytes / GB:.1f} GB"
        )
    try:
        require_memory_of_loader(study)
    except InputError as error:
        yield f"{error}; a training on this machine would be refused"
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if study.compute.device == "cpu" and study.resources.memory_mb * 1e6 > memory_bytes:
        yield (
            f"resources.memory_mb is {study.resources.memory_mb:,}, this machine has {memory_bytes / 1e6:,.0f}: "
            "trainings here may be killed"
        )


def run_bytes(study: Study, row: str, num_labels: int) -> int:
    """Disk of one run: two checkpoints of weights and two moments, the model and kept weights, all in float32."""
    network = network_on_meta(BACKBONES[study.backbone_of(row)], num_labels, study.of_row(row).model)
    points = len(study.evaluation.score_at_epochs) + len(study.evaluation.score_at_steps)
    return 4 * (2 * 3 + 1 + points) * sum(value.numel() for value in network.parameters())


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
    is_coco = study.dataset.train is not None and study.dataset.train.exhaustive
    return {
        "study": study.study,
        "dataset": study.dataset.name,
        "images_checked": images_checked,
        **({"annotations": EXHAUSTIVE} if is_coco else {}),
        **splits,
        "repeat_factors": summary(factors),
        "schedule": schedule_facts(recipe),
        "learning_rate": recipe.rate_sentence,
        "gpu_memory": memory_facts(study, train.num_labels) if study.compute.device == "cuda" else {},
        "price": price_facts(study, recipe.steps),
        "weights": study.model.weights,
        "backbones": list(dict.fromkeys(map(study.backbone_of, study.trained_rows))),
        "seeds": list(study.seeds),
    }


def memory_facts(study: Study, num_labels: int) -> dict[str, dict[str, dict[str, float]]]:
    """Least memory of a training step on one GPU by row and precision, in GB of 2^30 bytes."""
    group, images = study.schedule.normalisation_group, study.schedule.images_per_step
    return {
        name: {
            precision: {
                "group_gb": memory.needed(group, precision) / 2**30,
                "step_gb": memory.needed(images, precision) / 2**30,
                "groups_at_once": min(memory.images_in(GPU_GB * 2**30, precision), images) // group,
            }
            for precision in ("fp32", "bf16")
        }
        for name, memory in (
            (row, step_memory(study.of_row(row), study.backbone_of(row), num_labels)) for row in study.rows_to_train
        )
    }


def price_facts(study: Study, steps: int) -> dict[str, Any]:
    """What each run costs by its arithmetic, and on which device."""
    own = {row: study.of_row(row) for row in study.rows_to_train}
    return {
        "estimated_for": DEVICES[study.compute.device].name,
        "unit": "GPU-hours" if study.compute.device == "cuda" else "core-hours",
        "of_a_run": {
            row: {
                "tflop_per_image": step_flops(of_row, study.backbone_of(row)) / of_row.schedule.images_per_step / 1e12,
                "hours": estimated_hours(of_row, study.backbone_of(row), of_row.schedule.steps or steps),
            }
            for row, of_row in own.items()
        },
    }


def version_name(store: AnnotationStore) -> str:
    """The page's name of a file's version."""
    version = version_of(store.categories)
    return "not LVIS" if version is None else f"LVIS {version.name}"


def schedule_facts(recipe: Recipe) -> dict[str, Any]:
    """Budget in steps and images: since an epoch is a pass over the oversampled list, "2x" alone is ambiguous."""
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


def write_page(page: Page, out: Path) -> None:
    """Write preflight.json and .txt, or with errors preflight_failed.json and .txt only.

    The JSON lists every missing image.

    Raises:
        InputError: the page has errors; names the first one, and the page for the others.
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
        fix = f"{first.fix} ({f'{others} more error(s), ' if others else ''}page: {failed})"
        raise InputError(first.where, first.what, allowed=first.allowed, fix=fix)
    write_json(out, content)


def require_annotations(store: AnnotationStore) -> None:
    """Raise InputError for the store of a test set."""
    if not len(store.annotation_ids):
        what = "has no annotations: nothing to train on or to score against"
        raise InputError(store.source_name, what, fix="name a split with annotations; infer and export take a test set")


def image_folders(train: Path | None, val: Path | None, *, skip: bool) -> tuple[Path, Path] | None:
    """The folders of images to check; None to check none. InputError if a folder was not named."""
    if skip:
        return None
    if train is None or val is None:
        option = "--train-images" if train is None else "--val-images"
        raise InputError(option, "missing", fix="name the folder, or skip image files with --no-images")
    return train, val


def step(args: argparse.Namespace) -> None:
    """Check one study."""
    study = load_study_for_step(args.study, "preflight", None, args.row)
    if args.row is not None and args.row not in study.trained_rows:
        allowed = ", ".join(study.trained_rows)
        raise InputError(f"--row {args.row}", "is no row of the study", allowed=allowed, fix="name one of them")
    train, val = open_store(args.train_store), open_store(args.val_store)
    for store in (train, val):
        require_annotations(store)
    folders = image_folders(args.train_images, args.val_images, skip=args.no_images)
    page = preflight(study, train, val, folders)
    zoo, weights_dir = load_zoo(zoo_of(study, args.study)), Path(study.resources.weights_dir)
    if args.row is not None:
        page.facts["study"] += f", row {args.row}"
    else:
        page.warnings.extend(machine_warnings(study, args.out.parent, train.num_labels))
    page.warnings.extend(initial_warnings(zoo, study.initial_weights, weights_dir))
    for warning in page.warnings:
        log.warning("warning: %s", warning)
    write_page(page, args.out)
    schedule = page.facts["schedule"]
    log.info("%s", next(price_lines(page.facts)))
    log.info(
        "%s: ok; %s steps, %s images seen, %.2f epochs of %s images",
        args.out,
        f"{schedule['steps']:,}",
        f"{schedule['images_seen']:,}",
        schedule["epochs"],
        f"{schedule['epoch_length']:,}",
    )


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="FILE", help="study file")
    parser.add_argument("--row", metavar="NAME", help="check what this row of the study changes")
    parser.add_argument("--train-store", type=Path, required=True, metavar="STORE", help="annotation store")
    parser.add_argument("--val-store", type=Path, required=True, metavar="STORE", help="annotation store")
    parser.add_argument("--train-images", type=Path, metavar="DIR", help="folder of the training images")
    parser.add_argument("--val-images", type=Path, metavar="DIR", help="folder of the validation images")
    parser.add_argument("--no-images", action="store_true", help="do not check image files")
    add_output(parser, "--out", "preflight.json, the page beside it", suffix=".json", beside=(".txt",))
    run_step(parser, step)


if __name__ == "__main__":
    main()

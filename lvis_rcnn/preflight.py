"""Everything that can be wrong with data and settings is found before training begins.

Both splits are compared with each other, with their image files and with the settings. The result is one page for a
person (preflight.txt) and the same as preflight.json. With errors the page is called preflight_failed.txt and the step
fails with the first of them.

    python -m lvis_rcnn.preflight --study configs/mini.yaml --train-store train.store --val-store val.store
        --train-images images --val-images images --out preflight.json
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from lvis_rcnn.annotations import AnnotationStore, image_candidates, open_store
from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.config import Augmentation, Model, Study, load_study_for_step, zoo_of
from lvis_rcnn.files import atomic_file, write_json
from lvis_rcnn.image_files import ImageFile, ImageFiles
from lvis_rcnn.repeat_factors import RepeatFactors, repeat_factors, summary, why_none
from lvis_rcnn.sample_stream import SampleStream
from lvis_rcnn.schedule import Recipe, make_recipe
from lvis_rcnn.zoo import initial_warnings, load_zoo

# What both OpenCV, which trains, and Pillow, which checks, read.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
# Last bytes of a complete file; a format that is not here is decoded. MPO is a JPEG with a second picture.
END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
EXIF_ORIENTATION = 0x0112
# Orientations 5 to 8 swap height and width when OpenCV applies them.
SWAPPING_ORIENTATIONS = (5, 6, 7, 8)

# Headers are mostly waiting for the disk; more threads than cores hide it.
THREADS = 8
IMAGES_PER_TASK = 256
# Bad files of one kind and split that are named one by one.
NAMED_FILES = 5
EPOCHS_OF_2X = 24
# What configs/zoo/lvis.yaml says where to fetch.
COCO_ZIPS = {"train2017.zip", "val2017.zip"}


class Problem(NamedTuple):
    """An error found here, in the parts of :class:`InputError`."""

    where: str
    what: str
    allowed: str = ""
    mend: str = ""

    def __str__(self) -> str:
        return str(InputError(self.where, self.what, allowed=self.allowed, mend=self.mend))


@dataclass
class Page:
    """What was found."""

    errors: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def preflight(
    study: Study, train: AnnotationStore, val: AnnotationStore, image_folders: tuple[Path, Path] | None
) -> Page:
    """Check two splits and the settings; ``image_folders`` (train, val) None leaves image files alone.

    Raises:
        InputError: no training image is left after filtering.
    """
    sampling = study.sampling
    factors = repeat_factors(train, sampling.oversample_threshold, sampling.rounding, sampling.exponent)
    recipe = recipe_of(study, train, factors)
    errors = [*category_errors(train, val), *label_errors(train), *label_errors(val)]
    errors += settings_errors(study.augmentation, study.model)
    if image_folders is not None:
        for store, folder in zip((train, val), image_folders, strict=True):
            errors += image_errors(store, folder)
    warnings = [*split_warnings(train), *split_warnings(val), *frequency_warnings(train, val, factors)]
    warnings += overlap_warnings(train, val, image_folders or (Path(), Path()))
    warnings += settings_warnings(recipe, study.model, factors)
    return Page(errors, warnings, facts(study, train, val, factors, recipe, images_checked=image_folders is not None))


def recipe_of(study: Study, train: AnnotationStore, factors: RepeatFactors) -> Recipe:
    """Budget and rates of the study's first seed; others differ only in what stochastic rounding draws."""
    schedule = study.schedule
    stream = SampleStream(
        factors=factors.image_factors,
        rounding=factors.rounding,
        portrait=np.asarray(train.widths < train.heights),
        seed=study.seeds[0],
        group_size=schedule.normalisation_group,
        groups_per_step=schedule.images_per_step // schedule.normalisation_group,
    )
    return make_recipe(schedule, stream)


def category_errors(train: AnnotationStore, val: AnnotationStore) -> Iterator[Problem]:
    """Labels are positions in the file, so both files must list the same categories in the same order."""
    ours, theirs = ([(category.id, category.name) for category in store.categories] for store in (train, val))
    if ours == theirs:
        return
    mend = "use annotation files of one dataset version"
    if len(ours) != len(theirs):
        what = f"{len(theirs)} categories, but {len(ours)} in {train.source_name}"
        yield Problem(val.source_name, what, allowed="the categories of the training split", mend=mend)
        return
    at = next(n for n, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    if sorted(ours) == sorted(theirs):
        mend = "sort the categories of both files by id"
    yield Problem(
        f"{val.source_name}: categories[{at}]",
        f"is {theirs[at][1]!r}, id {theirs[at][0]}, but {ours[at][1]!r}, id {ours[at][0]}, in {train.source_name}",
        allowed="the categories of the training split, in its order",
        mend=mend,
    )


def label_errors(store: AnnotationStore) -> Iterator[Problem]:
    """A label outside 1 to C would end a GPU run with a device assertion."""
    low, high = int(store.labels.min()), int(store.labels.max())
    if low < 1 or high >= store.num_labels:
        allowed = f"1 to {store.num_labels - 1}"
        yield Problem(str(store.path), f"holds labels {low} to {high}", allowed, "build the store again")


def settings_errors(augmentation: Augmentation, model: Model) -> Iterator[Problem]:
    """Settings that are each valid but cannot go together."""
    short_px, long_px = max(augmentation.short_edges_px), augmentation.long_edge_px
    if short_px > long_px:
        what = f"{short_px} px is above long_edge_px, {long_px} px"
        yield Problem("augmentation.short_edges_px", what, f"at most {long_px}", "raise long_edge_px or lower the edge")
    if int(model.rois_per_image * model.roi_positive_fraction) < 1:
        what = f"{model.roi_positive_fraction} of {model.rois_per_image} regions leaves no positive one"
        yield Problem("model.roi_positive_fraction", what, "one region or more", "raise it or rois_per_image")


def image_errors(store: AnnotationStore, folder: Path) -> list[Problem]:
    """Every image of a split: there, readable, complete, of the annotated size."""
    missing: list[int] = []
    damaged: list[Problem] = []
    files = ImageFiles(folder)
    pool = ThreadPoolExecutor(THREADS)
    starts = range(0, store.num_images, IMAGES_PER_TASK)
    tasks = [range(start, min(start + IMAGES_PER_TASK, store.num_images)) for start in starts]
    try:
        with tqdm(total=store.num_images, desc=store.source_name, unit="image", disable=None) as bar:
            results = pool.map(lambda task: check_images(store, files, task), tasks)
            for task, (absent, broken) in zip(tasks, results, strict=True):
                missing += absent
                damaged += broken
                bar.update(len(task))
    finally:
        pool.shutdown(cancel_futures=True)
    return [*missing_problem(store, folder, missing), *shortened(damaged, store)]


def check_images(store: AnnotationStore, files: ImageFiles, images: range) -> tuple[list[int], list[Problem]]:
    """Positions of missing images, problems of damaged ones."""
    missing, damaged = [], []
    for image in images:
        try:
            file = files.of(store, image)
        except InputError:
            missing.append(image)
            continue
        what = image_problem(file, int(store.heights[image]), int(store.widths[image]))
        if what is not None:
            where = f"{store.source_name}: image {store.image_ids[image]}"
            damaged.append(Problem(where, f"{file} {what}", mend="fetch the file again or correct its annotation"))
    return missing, damaged


def image_problem(file: ImageFile, height_px: int, width_px: int) -> str | None:
    """What is wrong with an image file, None if nothing.

    Header and last bytes are read; pixels are decoded only where the end is not that of a complete file. OpenCV would
    fill the missing part of a truncated JPEG with grey and say nothing.
    """
    try:
        if file.size_bytes == 0:
            return "is empty (0 bytes)"
        with file.open() as stream, Image.open(stream, formats=FORMATS) as image:
            width, height, note = upright_size(image)
            if (height, width) != (height_px, width_px):
                return f"is {width} x {height} pixels{note}, annotated as {width_px} x {height_px}"
            marker = END_MARKERS.get(image.format or "", b"")
            if not marker or not ends_with(stream, marker):
                stream.seek(0)
                image.load()
                # Pillow reads a PNG whose last chunk is cut off, OpenCV does not; bytes after the mark harm neither.
                if marker not in file.read():
                    return "is truncated: it has no end mark"
    except UnidentifiedImageError:
        return f"is no image of a known format ({', '.join(FORMATS)})"
    except Exception as error:  # a decoder may raise anything on damaged bytes
        return f"is damaged: {error}"
    return None


def upright_size(image: Image.Image) -> tuple[int, int, str]:
    """Width and height as OpenCV will see them, and a note where it turns the image."""
    # Asking a PNG without EXIF for its EXIF would decode it.
    if "exif" in image.info and image.getexif().get(EXIF_ORIENTATION) in SWAPPING_ORIENTATIONS:
        return image.height, image.width, " after the rotation in its EXIF data"
    return image.width, image.height, ""


def ends_with(stream: BinaryIO, marker: bytes) -> bool:
    """Whether the file's last bytes are these."""
    stream.seek(-len(marker), os.SEEK_END)
    return stream.read() == marker


def missing_problem(store: AnnotationStore, folder: Path, missing: list[int]) -> Iterator[Problem]:
    """One problem for all missing images of a split, since they have one cause."""
    if missing:
        all_names = [image_candidates(*store.image_name(image))[0] for image in missing]
        names = all_names[:NAMED_FILES]
        others = f", ... ({len(missing) - len(names):,} more)" if len(missing) > len(names) else ""
        zips = sorted({f"{Path(name).parent.name}.zip" for name in all_names} & COCO_ZIPS)
        fetch = f"; the target fetch of Snakemake brings {' and '.join(zips)}" if zips else ""
        yield Problem(
            f"{store.source_name}: image {store.image_ids[missing[0]]}",
            f"{len(missing):,} of {store.num_images:,} images not found in {folder}: {', '.join(names)}{others}",
            mend=f"set the split's 'images' to the folder that holds them, or add the files{fetch}",
        )


def shortened(damaged: list[Problem], store: AnnotationStore) -> list[Problem]:
    """The first few, and one that counts the others."""
    if len(damaged) <= NAMED_FILES:
        return damaged
    others = Problem(store.source_name, f"{len(damaged) - NAMED_FILES:,} more images are damaged or of another size")
    return [*damaged[:NAMED_FILES], others]


def split_warnings(store: AnnotationStore) -> Iterator[str]:
    """What one split has that is legal but worth knowing."""
    if boxes := store.counts["clipped_boxes"]:
        yield f"{store.source_name}: {boxes:,} boxes overshoot their image and are clipped"
    if masks := store.counts["empty_masks"]:
        yield f"{store.source_name}: {masks:,} annotations have area 0: neither trained on nor scored"
    image_of = np.repeat(np.arange(store.num_images), np.diff(store.annotation_offsets))
    absent_in = np.repeat(np.arange(store.num_images), np.diff(store.negative_offsets))
    present = image_of * store.num_labels + store.labels
    absent = absent_in * store.num_labels + store.negative_labels
    if both := len(np.intersect1d(present, absent)):
        yield f"{store.source_name}: {both:,} categories of an image are annotated and listed as absent in it"


def frequency_warnings(train: AnnotationStore, val: AnnotationStore, factors: RepeatFactors) -> Iterator[str]:
    """Frequency groups are read from the files, never derived; this says where that may surprise."""
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
        yield f"{train.source_name}: {unseen:,} of {len(seen):,} categories have no training image and score 0"
    pairs = zip(train.categories, val.categories, strict=False)
    if differ := sum(ours.frequency != theirs.frequency for ours, theirs in pairs):
        yield f"{val.source_name}: {differ:,} frequencies are not those of the training split; these are scored by"


def overlap_warnings(train: AnnotationStore, val: AnnotationStore, folders: tuple[Path, Path]) -> Iterator[str]:
    """Images that are trained on and scored."""
    ours, theirs = (
        {folder / image_candidates(*store.image_name(image))[0] for image in range(store.num_images)}
        for store, folder in zip((train, val), folders, strict=True)
    )
    if both := sorted(ours & theirs):
        yield f"{len(both):,} images are in both splits, so the scores are not of unseen images; first: {both[0]}"


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
        name: {"source": store.source_name, "annotations_sha256": store.annotations_sha256, **store.counts}
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
    """Write preflight.json and .txt; with errors write only the failed page, and leave neither of the two.

    Raises:
        InputError: the page has errors; the first, with the way to the others.
    """
    failed = out.with_name(f"{out.stem}_failed.txt")
    for stale in (out, out.with_suffix(".txt"), failed):
        stale.unlink(missing_ok=True)
    with atomic_file(failed if page.errors else out.with_suffix(".txt")) as temporary:
        temporary.write_text(page_text(page), encoding="utf-8")
    if page.errors:
        first, others = page.errors[0], len(page.errors) - 1
        mend = f"{first.mend} ({f'{others} more error(s), ' if others else ''}page: {failed})"
        raise InputError(first.where, first.what, allowed=first.allowed, mend=mend)
    write_json(out, {"errors": [], "warnings": page.warnings, "facts": page.facts})


def image_folders(train: Path | None, val: Path | None, *, skip: bool) -> tuple[Path, Path] | None:
    """The folders to look into, None for none.

    Raises:
        InputError: a folder was not named.
    """
    if skip:
        return None
    if train is None or val is None:
        option = "--train-images" if train is None else "--val-images"
        raise InputError(option, "missing", mend="name the folder, or leave image files alone with --no-images")
    return train, val


def step(args: argparse.Namespace) -> None:
    """Check one study."""
    study = load_study_for_step(args.study, "preflight", None)
    train, val = open_store(args.train_store), open_store(args.val_store)
    folders = image_folders(args.train_images, args.val_images, skip=args.no_images)
    page = preflight(study, train, val, folders)
    zoo, weights_dir = load_zoo(zoo_of(study, args.study)), Path(study.resources.weights_dir)
    page.warnings.extend(initial_warnings(zoo, study.model.weights, study.backbones, weights_dir))
    for warning in page.warnings:
        log.warning("warning: %s", warning)
    write_page(page, args.out)
    schedule = page.facts["schedule"]
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
    parser.add_argument("--train-store", type=Path, required=True, metavar="STORE", help="annotation store")
    parser.add_argument("--val-store", type=Path, required=True, metavar="STORE", help="annotation store")
    parser.add_argument("--train-images", type=Path, metavar="DIR", help="folder of the training images")
    parser.add_argument("--val-images", type=Path, metavar="DIR", help="folder of the validation images")
    parser.add_argument("--no-images", action="store_true", help="leave image files alone")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="preflight.json", help="the page is written beside it"
    )
    run_step(parser, step)


if __name__ == "__main__":
    main()

"""Everything that can be wrong with data and settings is found before training begins.

Both splits are compared with each other, with their image files and with the settings. The result is one page for a
person (preflight.txt) and the same as preflight.json. With errors the page is called preflight_failed.txt and the step
fails with the first of them.

    python -m lvis_rcnn.preflight --study configs/mini.yaml --train-store train.store --val-store val.store
        --train-images images --val-images images --out preflight.json
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lvis_rcnn.annotations import AnnotationStore, image_candidates, open_store
from lvis_rcnn.command import InputError, log, run_step, step_parser
from lvis_rcnn.config import Study, load_study_for_step, zoo_of
from lvis_rcnn.image_checks import Problem, image_errors
from lvis_rcnn.lvis_versions import claimed_version, unlike_a_full_split, version_of
from lvis_rcnn.preflight_page import Page, facts, write_page
from lvis_rcnn.repeat_factors import RepeatFactors, repeat_factors, why_none
from lvis_rcnn.sample_stream import SampleStream
from lvis_rcnn.schedule import Recipe, make_recipe
from lvis_rcnn.sections import Augmentation, Model
from lvis_rcnn.zoo import initial_warnings, load_zoo

GB = 1e9
# Numbers of each network without the layers that grow with the categories.
PARAMETERS_WITHOUT_CLASSES = {
    "r50": 43_964_751,
    "r101": 62_956_879,
    "x101_32x4d": 62_585_423,
    "x101_64x4d": 101_862_991,
}


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
    errors += [*version_errors(train, study.dataset.name), *version_errors(val, study.dataset.name)]
    errors += settings_errors(study.augmentation, study.model)
    missing: list[str] = []
    skipped: list[str] = []
    if image_folders is not None:
        for store, folder in zip((train, val), image_folders, strict=True):
            found = image_errors(store, folder)
            if store is train and study.augmentation.skip_broken_images and len(found.missing) < store.num_images:
                skipped += [f"{problem}; training skips it" for problem in found.problems]
                continue
            errors += found.problems
            missing += found.missing
    warnings = [*skipped, *split_warnings(train), *split_warnings(val), *frequency_warnings(train, val, factors)]
    warnings += overlap_warnings(train, val, image_folders or (Path(), Path()))
    warnings += settings_warnings(recipe, study.model, factors)
    return Page(
        errors, missing, warnings, facts(study, train, val, factors, recipe, images_checked=image_folders is not None)
    )


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


def version_errors(store: AnnotationStore, dataset_name: str) -> Iterator[Problem]:
    """A file that is another version of LVIS than it, or the study, is called."""
    version = version_of(store.categories)
    for where, name in ((store.source_name, store.source_name), ("dataset.name", dataset_name)):
        claimed = claimed_version(name)
        if version is not None and claimed not in (None, version.name):
            what = f"speaks of LVIS {claimed}, but the categories of {store.source_name} are those of {version.name}"
            mend = f"name the file of LVIS {claimed}, or call it what it is"
            yield Problem(where, what, allowed=f"{version.name}, by content", mend=mend)
            return


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


def split_warnings(store: AnnotationStore) -> Iterator[str]:
    """What one split has that is legal but worth knowing."""
    version = version_of(store.categories)
    if version is not None:
        for difference in unlike_a_full_split(version, store.counts):
            yield f"{store.source_name}: {difference}"
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


def machine_warnings(study: Study, results_dir: Path, num_categories: int) -> Iterator[str]:
    """Disk that will not suffice, memory that this machine does not have."""
    results_dir.mkdir(parents=True, exist_ok=True)
    needed_bytes = sum(run_bytes(name, num_categories) for name in study.backbones) * len(study.seeds)
    free_bytes = shutil.disk_usage(results_dir).free
    if free_bytes < needed_bytes:
        yield (
            f"{results_dir}: {free_bytes / GB:.1f} GB free; checkpoints and models of the study take about "
            f"{needed_bytes / GB:.1f} GB"
        )
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if study.compute.device == "cpu" and study.resources.memory_mb * 1e6 > memory_bytes:
        yield (
            f"resources.memory_mb is {study.resources.memory_mb:,}, this machine has {memory_bytes / 1e6:,.0f}: "
            "trainings here may be killed"
        )


def run_bytes(backbone: str, num_categories: int) -> int:
    """Disk of one run: two checkpoints of weights and two moments of the optimizer, and the model, in float32."""
    of_regions = (1024 + 1) * (1 + num_categories + 4 * num_categories)
    parameters = PARAMETERS_WITHOUT_CLASSES[backbone] + of_regions + (256 + 1) * num_categories
    return 4 * (2 * 3 + 1) * parameters


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
    page.warnings.extend(machine_warnings(study, args.out.parent, train.num_labels - 1))
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

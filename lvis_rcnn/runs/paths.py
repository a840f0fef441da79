"""Where the files of a study lie and what its steps read: pure functions of the study, which the workflow's rules call.

A row is a named variant of a study: one that is trained, whose name is that of its backbone (``r50``) or the one that
the study gives it (``seesaw``), or a published model (``published/lvis_v0.5_r50``). A run is a row with a seed
(``r50/seed0``), or a published row itself. Paths are relative to the folder that Snakemake runs in.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lvis_rcnn.config.machine import Ask
from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import SECTIONS_OF_STEP, Study, load_study, zoo_of
from lvis_rcnn.config.zoo import (
    SCORED_KINDS,
    Source,
    ZooModel,
    lacking_files,
    lacking_weights,
    load_sources,
    scored_models,
)
from lvis_rcnn.system.cli import InputError

RESULTS = "results"
PUBLISHED = "published/"
"""What the name of a row begins with that is not trained here."""


@dataclass(frozen=True)
class StudyPaths:
    """A study with what it takes to name its files; :func:`load_study_paths` makes it."""

    study: Study
    study_file: Path
    published: Mapping[str, ZooModel]
    """Models that are scored without training, by name."""
    missing_files: Mapping[str, Source]
    """Files of the dataset that can be fetched and are not there, by path."""
    missing_weights: Mapping[str, ZooModel]
    """The same of published weights."""

    @property
    def folder(self) -> str:
        """Folder of all results of the study."""
        return f"{RESULTS}/{self.study.study}"

    # Rows and runs

    @property
    def trained_rows(self) -> list[str]:
        """Rows that are trained, or use the training of another row."""
        return list(self.study.trained_rows)

    @property
    def rows(self) -> list[str]:
        """All rows of the results table, in its order."""
        return [*self.trained_rows, *(f"{PUBLISHED}{model}" for model in self.published)]

    def row_of(self, wildcards: Mapping[str, str]) -> str:
        """The row of a job, whose rule names it (row), a run of it (group and member) or a published model (model)."""
        if "row" in wildcards:
            return wildcards["row"]
        model = wildcards.get("model") or wildcards["member"]
        return f"{PUBLISHED}{model}" if wildcards.get("group", "published") == "published" else wildcards["group"]

    def backbone_of(self, row: str) -> str:
        """The backbone of a row: the one place that knows it."""
        is_published = row.startswith(PUBLISHED)
        return self.published[row.removeprefix(PUBLISHED)].backbone if is_published else self.study.backbone_of(row)

    def study_of(self, row: str) -> Study:
        """The study as a row sees it, with the row's own settings."""
        return self.study if row.startswith(PUBLISHED) else self.study.of_row(row)

    def split_of(self, row: str) -> str:
        """The validation split that a row is scored on."""
        splits = {f"{PUBLISHED}{published.model}": published.split for published in self.study.published}
        return splits.get(row, "val")

    def runs_of_row(self, row: str) -> list[str]:
        """The runs of a row: one with each seed, or the published model itself."""
        return [row] if row.startswith(PUBLISHED) else [f"{row}/seed{seed}" for seed in self.study.seeds]

    def first_run(self, row: str) -> str:
        """The run that is measured and pictured for its row: that of the first seed."""
        return self.runs_of_row(row)[0]

    @property
    def trained_runs(self) -> list[str]:
        """Every row that has a training of its own, with every seed."""
        return [run for row in self.study.rows_to_train for run in self.runs_of_row(row)]

    @property
    def runs(self) -> list[str]:
        """All runs, each of which is scored."""
        return [run for row in self.rows for run in self.runs_of_row(row)]

    def model(self, run: str) -> str:
        """The weights of a run: its own, or those of the row whose training it uses."""
        return f"{self.folder}/{trained_run(self.study, run)}/model.pth"

    def of_runs(self, name: str) -> list[str]:
        """The file ``name`` of every run."""
        return [f"{self.folder}/{run}/{name}" for run in self.runs]

    def of_trained_runs(self, name: str) -> list[str]:
        """The file ``name`` of every run that is trained."""
        return [f"{self.folder}/{run}/{name}" for run in self.trained_runs]

    @property
    def so_far(self) -> list[str]:
        """Scores of weights that the trainings keep on their way; none where the study names no points for them."""
        return self.of_trained_runs("ap_so_far.json") if self.study.evaluation.scores_on_the_way else []

    def of_rows(self, name: str) -> list[str]:
        """The file ``name`` of every row."""
        return [f"{self.folder}/{row}/{name}" for row in self.rows]

    def of_published(self, name: str) -> list[str]:
        """The file ``name`` of every published row."""
        return [f"{self.folder}/{row}/{name}" for row in self.rows if row.startswith(PUBLISHED)]

    def results_of(self, row: str) -> list[str]:
        """Scores of every run of a row, and its measurement."""
        scores = (f"{self.folder}/{run}/metrics.json" for run in self.runs_of_row(row))
        return [*scores, f"{self.folder}/{row}/measure.json"]

    def asked(self, row: str) -> Ask:
        """What the training of a row asks of the machine."""
        return self.study.asked(self.backbone_of(row))

    def priority(self, row: str) -> int:
        """The first row is trained first, so that it is there soon; then what takes longest, so all end together."""
        is_first = row == self.trained_rows[0]
        return 1 + (len(BACKBONES) if is_first else list(BACKBONES).index(self.backbone_of(row)))

    # Data

    @property
    def splits(self) -> list[str]:
        """Names of all splits of the study."""
        dataset = self.study.dataset
        return [*(["train", "val"] if dataset.is_trained_on else []), *dataset.splits]

    @property
    def drawn_folder(self) -> str:
        """Folder of the drawn dataset; studies that draw the same one share it."""
        draw = self.study.dataset.draw
        assert draw is not None
        return f"{RESULTS}/data/drawn_seed{draw.seed}_{draw.train_images}_{draw.val_images}"

    def annotation_file(self, split: str) -> str:
        """LVIS-format JSON of a split."""
        named = self.study.dataset.named(split)
        return named.annotations if named else f"{self.drawn_folder}/{split}.json"

    def image_folder(self, split: str) -> str:
        """Folder that the image names of a split are relative to."""
        named = self.study.dataset.named(split)
        return named.images if named else f"{self.drawn_folder}/images"

    def store(self, split: str) -> str:
        """Annotation store of a split."""
        return f"{self.folder}/data/{split}.store"

    def repeat_factors(self, row: str) -> str:
        """Folder of the repeat factors of the training images, one for all rows that are sampled alike."""
        return f"{self.folder}/repeat_factors{name_end(self.study, row, SAMPLED)}"

    @cached_property
    def samplings(self) -> dict[str, str]:
        """The first row of each sampling, by the end of its folder's name."""
        return {name_end(self.study, row, SAMPLED): row for row in reversed(self.trained_rows)}

    @cached_property
    def checks(self) -> dict[str, str]:
        """The first row of each check beyond that of the study itself, by the end of its file's name."""
        found = {name_end(self.study, row, CHECKED): row for row in reversed(self.study.rows_to_train)}
        return {end: row for end, row in found.items() if end}

    def preflight(self, row: str) -> str:
        """What preflight found for a row; rows that are trained alike share it."""
        return f"{self.folder}/preflight{name_end(self.study, row, CHECKED)}.json"

    @property
    def preflight_pages(self) -> list[str]:
        """All that preflight found, for people."""
        return [f"{self.folder}/preflight{end}.txt" for end in ("", *self.checks)] if self.trained_rows else []

    @property
    def calibration(self) -> list[str]:
        """Counts and fractal dimensions of the categories in training; none where no scores are calibrated."""
        return [f"{self.folder}/calibration.csv"] if self.study.calibrations else []

    def if_available(self, path: str) -> list[str]:
        """``path`` where it exists or a rule makes it; otherwise none: the step itself says best what is missing."""
        is_drawn = self.study.dataset.draw is not None and Path(path).is_relative_to(self.drawn_folder)
        return [path] if is_drawn or path in self.missing_files or Path(path).exists() else []

    def images(self, split: str) -> list[str]:
        """The images of a split as an input."""
        return self.if_available(self.image_folder(split))

    def annotations(self, split: str) -> list[str]:
        """The annotations of a split as an input, and what its frequencies follow from."""
        files = [self.annotation_file(split), *self.frequency_files(split)]
        return [path for file in files for path in self.if_available(file)]

    def is_exhaustive(self, split: str) -> bool:
        """Whether a split is plain COCO that is taken as exhaustive."""
        named = self.study.dataset.named(split)
        return named is not None and named.exhaustive

    def frequency_files(self, split: str) -> list[str]:
        """The training annotations, where by their images categories of another split are rare, common or frequent."""
        train = self.study.dataset.train
        return [train.annotations] if train and split != "train" and self.is_exhaustive(split) else []

    def coco_options(self, split: str) -> str:
        """How a split's annotations are read, as options; empty for those of LVIS's format."""
        counted = [word for file in self.frequency_files(split) for word in ("--frequencies", file)]
        return shlex.join(["--coco-exhaustive", *counted]) if self.is_exhaustive(split) else ""

    def is_drawn(self, split: str) -> bool:
        """Whether a split is drawn and not read from files of the user."""
        return self.study.dataset.named(split) is None

    def store_source(self, split: str) -> list[str]:
        """The file whose change makes a store anew: of drawn data the small manifest, which equal files leave equal."""
        return [f"{self.drawn_folder}/manifest.json"] if self.is_drawn(split) else self.annotations(split)

    def store_source_drawn(self, split: str) -> list[str]:
        """The drawn annotations of a store, none where they are the user's files."""
        return [self.annotation_file(split)] if self.is_drawn(split) else []

    # What is fetched

    def fetch_name(self, path: str) -> str:
        """Name of the rule that fetches ``path``, with a number where a study wants one file in two places."""
        source = self.missing_files[path].name
        at = [other for other, row in self.missing_files.items() if row.name == source].index(path)
        return f"fetch_{source}_{at}" if at else f"fetch_{source}"

    @property
    def weights_to_fetch(self) -> dict[str, str]:
        """Name in the zoo of each missing published file, by the name of the file."""
        return {model.file_name: model.name for model in self.missing_weights.values()}

    def published_file(self, model: str) -> str:
        """Where the published file of a model lies, or will lie once it is fetched."""
        return f"{self.study.resources.weights_dir}/{self.published[model].file_name}"

    @property
    def zoo(self) -> Path:
        """File of the published models."""
        return zoo_of(self.study, self.study_file)

    @property
    def zoo_compared_with(self) -> list[str]:
        """The published numbers as an input, where rows have any to be compared with."""
        has_any = self.published or self.study.dataset.name in SCORED_KINDS
        return [str(self.zoo)] if has_any else []

    # Options of steps

    def sampling_options(self, row: str) -> str:
        """The sampling settings as options; without a threshold every image counts once."""
        sampling = self.study.of_row(row).sampling
        threshold = sampling.oversample_threshold
        given = "" if threshold is None else f"--threshold {threshold} "
        # Only where it is not the default, so that nothing is planned again that was done before there was a choice.
        frequency = "" if sampling.frequency == "image" else f" --frequency {sampling.frequency}"
        return f"{given}--rounding {sampling.rounding} --exponent {sampling.exponent}{frequency}"

    def calibration_of(self, row: str) -> list[str]:
        """The same where the scores of a row are calibrated, else none."""
        return self.calibration if self.study_of(row).inference.calibration else []

    def calibration_option(self, row: str) -> str:
        """By which table the scores of a row are calibrated, as an option; empty where they are not."""
        return " ".join(["--calibration", *table]) if (table := self.calibration_of(row)) else ""

    @property
    def subset_files(self) -> list[str]:
        """Lists of image ids as inputs of scoring, as far as they are there."""
        return [file for subset in self.study.evaluation.subsets for file in self.if_available(subset)]

    @property
    def protocol_options(self) -> str:
        """The protocols beside AP@300 as options."""
        evaluation = self.study.evaluation
        named = {"--subset": evaluation.subsets, "--protocols": evaluation.protocols}
        return " ".join(f"{option} {shlex.join(words)}" for option, words in named.items() if words)

    def scoring_options(self, split: str) -> str:
        """How the detections of a split are scored, as options; for LVIS's format just as the study says."""
        return " ".join(filter(None, [self.protocol_options, self.coco_options(split)]))

    def training_inputs(self, row: str) -> list[str]:
        """What a measurement of training memory reads beside images; nothing for a published row."""
        return [] if row.startswith(PUBLISHED) else [self.store("train"), self.repeat_factors(row)]

    def training_images(self, row: str) -> list[str]:
        """The images that it reads."""
        return [] if row.startswith(PUBLISHED) else self.images("train")

    def training_options(self, row: str) -> str:
        """Options of that measurement; empty for a published row, of which only the speed is measured."""
        if row.startswith(PUBLISHED):
            return ""
        images, factors = shlex.quote(self.image_folder("train")), self.repeat_factors(row)
        return f"--train-store {self.store('train')} --train-images {images} --repeat-factors {factors}"

    # What a person looks at

    def pictures(self, names: Iterable[str]) -> list[str]:
        """The pictures of every row, by their names."""
        return [f"{self.folder}/{self.first_run(row)}/pictures/{name}.png" for row in self.rows for name in names]

    def results_to_look_at(self) -> list[tuple[str, str]]:
        """What there is to see now: a word for it and where it lies, for a shell."""
        places = {"table": "table.md", "pages": "*.html", "plots": "plots", "pictures": "*/*/pictures"}
        places["comparison"] = "comparison/comparison.txt"
        return [(name, f"{self.folder}/{at}") for name, at in places.items() if any(Path(self.folder).glob(at))]

    @property
    def compared_folder(self) -> Path:
        """Results of the study that this one is compared with, which no rule makes."""
        return Path(RESULTS, self.study.report.compare_with or "")

    def compared_pairs(self) -> list[str]:
        """Names of the pairs of rows that are compared; one without a name where each study has a single row.

        Raises:
            InputError: nothing of the other study is scored, or it has no row in common with this one.
        """
        # Every process of Snakemake loads this file; only a study that is compared needs what compares.
        from lvis_rcnn.evaluation.compare import pair_names, rows_of_study

        others = rows_of_study(self.compared_folder)
        if not others:
            file = self.study_file.with_name(f"{self.study.report.compare_with}.yaml")
            raise InputError(
                f"{self.study_file}: report.compare_with",
                f"nothing in {self.compared_folder} is scored",
                allowed="a study that ran here up to its scores",
                fix=f"run it first: snakemake --cores 2 --configfile {file}",
            )
        return list(pair_names(self.compared_folder, others, Path(self.folder), self.rows))

    def compared_files(self) -> list[str]:
        """Scores and match results of the other study."""
        from lvis_rcnn.evaluation.compare import rows_of_study

        scores = [file for files in rows_of_study(self.compared_folder).values() for file in files]
        return [*map(str, scores), *(str(file.with_name("matches.npz")) for file in scores)]


def require_no_wildcards(study: Study, study_file: Path) -> None:
    """Refuse paths that Snakemake would read as patterns; steps that are started by hand take them."""
    splits = {name: named for name in ("train", "val", *study.dataset.splits) if (named := study.dataset.named(name))}
    paths = {
        f"dataset {name}: {key}": value for name, split in splits.items() for key, value in split.model_dump().items()
    }
    paths = {key: path for key, path in paths.items() if isinstance(path, str)}
    paths |= {f"evaluation.subsets.{at}": path for at, path in enumerate(study.evaluation.subsets)}
    paths |= {"resources.weights_dir": study.resources.weights_dir, "zoo": str(zoo_of(study, study_file))}
    for key, path in paths.items():
        if set(path) & set("{}"):
            raise InputError(
                f"{study_file}: {key}",
                f"is {path}, whose braces Snakemake would read as a wildcard",
                allowed="a path without braces",
                fix="rename it, or name a link to it: ln -s",
            )


def state_of_run(results: Path, study: Study, run: str) -> Path:
    """The folder of all state of a run, one below for each training and inference."""
    return results / "state" / study.study / run


# Sections of which rows that agree in them share repeat factors, and a check by preflight.
SAMPLED, CHECKED = ("sampling",), SECTIONS_OF_STEP["preflight"]


def name_end(study: Study, row: str, sections: Sequence[str]) -> str:
    """How names end of what rows share: _ROW of the first that agrees in ``sections``, nothing where the study does."""

    def settings(one: Study) -> list[Any]:
        return [getattr(one, section) for section in sections]

    if (own := settings(study.of_row(row))) == settings(study):
        return ""
    return next(f"_{one}" for one in study.trained_rows if settings(study.of_row(one)) == own)


def first_repeat_factors(study: Study, results: Path) -> Path:
    """Folder of the repeat factors of the first row that repeats images, for what shows one of them."""
    end = name_end(study, study.sampled_rows[0], SAMPLED) if study.trained_rows else ""
    return results / study.study / f"repeat_factors{end}"


def row_of_run(run: str) -> str:
    """The row of a run: ``r50`` of ``r50/seed0``."""
    return run if run.startswith(PUBLISHED) else run.rpartition("/")[0]


def trained_run(study: Study, run: str) -> str:
    """The run whose weights a run uses: often itself."""
    row = row_of_run(run)
    return run if run == row else f"{study.trained_as(row)}{run.removeprefix(row)}"


def runs_of(study: Study, study_file: Path) -> dict[str, str]:
    """The backbone of every run of a study, by the run's name; InputError as :func:`scored_models`."""
    published = scored_models(study, study_file)
    trained = {f"{row}/seed{seed}": study.backbone_of(row) for row in study.trained_rows for seed in study.seeds}
    return {**trained, **{f"{PUBLISHED}{name}": model.backbone for name, model in published.items()}}


def backbone_of_run(study: Study, study_file: Path, run: str) -> str:
    """The backbone of a run; InputError unless it is one of the study's."""
    known = runs_of(study, study_file)
    if run not in known:
        fix = "name another one, or add its row or seed to the study"
        raise InputError(f"{study_file}: run {run}", "is not one of the study", allowed=", ".join(known), fix=fix)
    return known[run]


def load_study_paths(study_file: Path) -> StudyPaths:
    """Read and check a study, its published models, and what of its data is there.

    Raises:
        InputError: the study, the zoo or the list of files to fetch is wrong, or a path has braces.
    """
    study = load_study(study_file)
    require_no_wildcards(study, study_file)
    return StudyPaths(
        study=study,
        study_file=study_file,
        published=scored_models(study, study_file),
        missing_files=lacking_files(study, load_sources()),
        missing_weights=lacking_weights(study, study_file),
    )

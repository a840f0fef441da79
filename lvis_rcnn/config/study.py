"""A study file becomes frozen, checked values, or a clear error.

A step's ``main`` reads the study; rooms take the sections that they need. The JSON Schema for editors
(workflow/schemas/study.schema.json) is generated from these models: ``python -m lvis_rcnn.config --schema FILE``.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from lvis_rcnn.config.explained import explained
from lvis_rcnn.config.machine import Ask, Compute, Resources
from lvis_rcnn.config.protocols import FEW_PER_IMAGE
from lvis_rcnn.config.schema import (
    BACKBONES,
    Augmentation,
    BackboneName,
    Calibration,
    Dataset,
    Evaluation,
    Inference,
    Line,
    Measure,
    Model,
    Name,
    Place,
    Published,
    Report,
    RowName,
    Sampling,
    Schedule,
    Section,
    Seed,
    Variant,
)
from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import sha256_of_json

CONFIGS = Path(__file__).parents[2] / "configs"
# The published models, a file of the checkout, so that a study finds it from any working directory.
DEFAULT_ZOO = CONFIGS / "zoo" / "mmdetection.yaml"
# The study that runs where none is named.
DEFAULT_STUDY = CONFIGS / "mini.yaml"

# Steps that also run, with less to do, where nothing is trained.
WITHOUT_TRAINING = ("measure",)

# What a row can change of the study.
VARIED = ("sampling", "augmentation", "model", "schedule", "inference")

# Folders of results/<study>/ and rules of the workflow, which share their names with rows.
RESERVED = {
    *("all", "batch", "benchmarks", "calibrate", "compare", "comparison", "data", "draw", "evaluate", "fetch"),
    *("import_published", "infer", "logs", "measure", "pages", "pictures", "plots", "preflight", "preflight_of_row"),
    *("published", "repeat_factors", "results_table", "state", "store", "table", "track", "train", "training_pictures"),
}

RESERVED_STARTS = ("fetch_", "repeat_factors_")

# Value of the sections of training where nothing is trained. Their types do not admit it, since load_study_for_step
# refuses such a study for every step that reads them.
ABSENT: Any = None


class Study(Section):
    """One study: what is trained here, and which published models are scored beside it.

    ``backbones`` and ``rows`` are trained, which needs ``sampling``, ``augmentation``, ``schedule`` and ``seeds``;
    ``published`` models are only scored. A study has at least one of the three.
    """

    study: Name
    """Name of the study and of its folder in results/."""
    title: Line
    """One line for the table's title: what this study is."""
    dataset: Dataset
    sampling: Sampling = ABSENT
    augmentation: Augmentation = ABSENT
    model: Model
    schedule: Schedule = ABSENT
    compute: Compute
    resources: Resources
    backbones: tuple[BackboneName, ...] = ()
    """Rows of the table that are trained, in this order."""
    rows: dict[RowName, Variant] = Field(default_factory=dict)
    """Further rows that are trained, by name, each with what it changes of the study."""
    seeds: tuple[Seed, ...] = ()
    """One run of each trained row for each seed."""
    zoo: Place | None = None
    """File of the published models, relative to the study file; null is the checkout's configs/zoo/mmdetection.yaml."""
    published: tuple[Published, ...] = ()
    """Rows of the table that are only scored, in this order."""
    inference: Inference
    evaluation: Evaluation = Evaluation()
    measure: Measure = Measure()
    report: Report = Report()

    @field_validator("study")
    @classmethod
    def own_folder(cls, name: str) -> str:
        """Studies share results/ with the drawn data, the checkpoints and the table."""
        if name in {"data", "state"} or name.startswith("table."):
            raise ValueError("a name other than data, state and table.*, which results/ needs itself")
        return name

    @model_validator(mode="after")
    def rows_once(self) -> Self:
        """A backbone, seed or published model that is listed twice is a mistake."""
        models = tuple(row.model for row in self.published)
        for key, values in (("backbones", self.backbones), ("seeds", self.seeds), ("published", models)):
            if len(set(values)) != len(values):
                raise ValueError(f"{key} must not repeat an entry")
        return self

    @model_validator(mode="after")
    def rows_have_names(self) -> Self:
        """A row has a name of its own, and the baseline is one of the rows."""
        for name in self.rows:
            if name in RESERVED or name in BACKBONES or name.startswith(RESERVED_STARTS):
                raise ValueError(f"a name other than {name} for that row, which the workflow uses itself")
        baseline = self.report.baseline
        if baseline is not None and baseline not in self.trained_rows:
            raise ValueError(f"report.baseline among the trained rows {', '.join(self.trained_rows)}, not {baseline}")
        return self

    @property
    def trained_rows(self) -> tuple[str, ...]:
        """Names of all rows that are trained; one of ``backbones`` is named by its backbone."""
        return (*self.backbones, *self.rows)

    def backbone_of(self, row: str) -> str:
        """The backbone of a trained row."""
        return self.rows[row].backbone if row in self.rows else row

    def title_of(self, row: str) -> str:
        """What the table calls a trained row."""
        return self.rows[row].title or row if row in self.rows else BACKBONES[row].title

    def of_row(self, row: str) -> "Study":
        """The study as if a trained row were its only one, with what that changes in the sections themselves."""
        return self.studies_of_rows[row]

    @cached_property
    def studies_of_rows(self) -> dict[str, "Study"]:
        """The same of each trained row; a process of Snakemake asks for them a few hundred times."""
        values = self.model_dump(mode="json", exclude_unset=True)
        return {row: Study.model_validate_json(json.dumps(row_values(values, row))) for row in self.trained_rows}

    def __copy__(self) -> Self:
        """Of a copy, which may be changed, all of that is made anew."""
        fields = {key: value for key, value in self.__dict__.items() if key in Study.model_fields}
        return self.model_construct(self.model_fields_set, **fields)

    def trained_as(self, row: str) -> str:
        """The row whose training a trained row uses: the first of the same backbone and settings, often itself."""
        return self.trainings[row]

    @cached_property
    def trainings(self) -> dict[str, str]:
        """The same of each trained row."""
        first: dict[tuple[str, str], str] = {}
        return {row: first.setdefault(self.training_of(row), row) for row in self.trained_rows}

    @property
    def rows_to_train(self) -> list[str]:
        """The rows that have a training of their own."""
        return [row for row in self.trained_rows if self.trained_as(row) == row]

    @property
    def sampled_rows(self) -> list[str]:
        """The trained rows that repeat images, before those that do not."""
        return sorted(self.trained_rows, key=lambda row: self.of_row(row).sampling.oversample_threshold is None)

    @property
    def initial_weights(self) -> list[tuple[str, str]]:
        """Kind and backbone of the published weights that trainings start from, each pair once."""
        pairs = [(self.of_row(row).model.weights, self.backbone_of(row)) for row in self.trained_rows]
        return [pair for pair in dict.fromkeys(pairs) if pair[0] != "none"]

    def training_of(self, row: str) -> tuple[str, str]:
        """What tells whether two rows end with the same weights: backbone, and digest of the settings."""
        return self.backbone_of(row), settings_digest(self.of_row(row), "train")

    @model_validator(mode="after")
    def no_detection_is_kept_for_nothing(self) -> Self:
        """AP counts 300 detections of an image: more are for AP-fixed."""
        kept, protocols = self.inference.detections_per_image, self.evaluation.asked_protocols
        if kept > FEW_PER_IMAGE and not any(one.is_fixed for one in protocols):
            allowed = f"at most {FEW_PER_IMAGE}, not {kept}, or fixed in evaluation.protocols"
            raise ValueError(f"inference.detections_per_image {allowed}: only AP-fixed counts more")
        return self

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """How the scores of its rows are calibrated, each way once."""
        found = [self.of_row(row).inference.calibration for row in self.trained_rows]
        found += [self.inference.calibration] if self.published else []
        return tuple(dict.fromkeys(filter(None, found)))

    @model_validator(mode="after")
    def calibration_is_defined(self) -> Self:
        """Calibration counts the categories of a training split, and shifts the logits of a plain softmax."""
        if self.inference.calibration and not self.dataset.is_trained_on:
            allowed = "dataset.draw, or dataset.train and dataset.val: it counts the categories of the training split"
            raise ValueError(f"inference.calibration with {allowed}")
        if self.inference.calibration and self.model.classification != "softmax":
            of = self.model.classification
            raise ValueError(f"inference.calibration with model.classification softmax; of {of} it is undefined")
        return self

    @model_validator(mode="after")
    def compared_with_another(self) -> Self:
        """A study is not compared with itself."""
        if self.report.compare_with == self.study:
            raise ValueError(f"report.compare_with of another study than {self.study} itself")
        return self

    @model_validator(mode="after")
    def training_is_whole(self) -> Self:
        """Backbones need everything that training needs; without them there are published models."""
        absent = [key for key in ("sampling", "augmentation", "schedule", "seeds") if not getattr(self, key)]
        key = "backbones" if self.backbones else "rows"
        if self.trained_rows and absent:
            raise ValueError(f"{key} are trained, which also needs {', '.join(absent)}")
        if self.trained_rows and not self.dataset.is_trained_on:
            raise ValueError(f"{key} are trained, which also needs dataset.draw, or dataset.train and dataset.val")
        if not self.trained_rows and not self.published:
            raise ValueError("at least one row: of backbones, which are trained, or of published models")
        return self

    @model_validator(mode="after")
    def points_lie_inside(self) -> Self:
        """Weights are kept within the budget of a training; steps of a budget in epochs are checked when it begins."""
        epochs, steps = self.evaluation.score_at_epochs, self.evaluation.score_at_steps
        if not (epochs or steps):
            return self
        if not self.trained_rows or self.schedule is None:
            raise ValueError("evaluation.score_at_epochs and score_at_steps only with rows that are trained")
        if epochs and self.schedule.epochs is None:
            raise ValueError("evaluation.score_at_steps, not score_at_epochs, since schedule.steps is the budget")
        for name, points, budget in (("epochs", epochs, self.schedule.epochs), ("steps", steps, self.schedule.steps)):
            if points and budget is not None and max(points) > budget:
                raise ValueError(f"evaluation.score_at_{name} up to schedule.{name}, {budget}, not {max(points)}")
        return self

    @model_validator(mode="after")
    def every_process_has_work(self) -> Self:
        """A process takes whole normalisation groups of a step; one without any would only wait."""
        groups = self.schedule.images_per_step // self.schedule.normalisation_group if self.schedule else 1
        for backbone in dict.fromkeys(map(self.backbone_of, self.trained_rows)):
            ask = self.asked(backbone)
            processes = (ask.gpus or 1) * (ask.nodes or 1)
            if processes > groups:
                raise ValueError(
                    f"resources.gpus * resources.nodes at most {groups}, the normalisation groups of a step, not "
                    f"{processes} ({backbone})"
                )
            if (ask.nodes or 1) > 1 and not ask.gpus:
                raise ValueError(f"resources.nodes above 1 with resources.gpus for each of them ({backbone})")
        return self

    def asked(self, backbone: str) -> Ask:
        """What a training of ``backbone`` asks of the machine, defaults filled in.

        Only ``gpu_model`` may be None, which takes any, and ``gpus``, where it needs none.
        """
        common, own = self.resources, self.resources.of_backbone.get(backbone, Ask())  # type: ignore[call-overload]
        gpus = int(self.compute.device == "cuda") if common.gpus is None else common.gpus
        cpus_per_gpu = common.cpus_per_gpu or self.compute.threads
        values = {
            **common.model_dump(include=set(Ask.model_fields)),
            "gpus": gpus or None,
            "cpus_per_gpu": cpus_per_gpu,
        }
        return Ask(**values | own.model_dump(exclude_none=True))

    @model_validator(mode="after")
    def published_can_be_scored(self) -> Self:
        """A published row is scored on a split of the study, with the anchors that all published models have."""
        if self.published and self.model.anchor_scale != 8:
            raise ValueError("published models with model.anchor_scale 8, which they were trained with")
        for row in self.published:
            if row.split not in self.dataset.scored_splits:
                known = ", ".join(self.dataset.scored_splits)
                raise ValueError(f"published {row.model} on one of the splits {known}, not on {row.split}")
        return self


# The sections that each step depends on: Snakemake compares exactly these, and a run's identity is made of them.
SECTIONS_OF_STEP: dict[str, tuple[str, ...]] = {
    # A subset of train's on purpose: train waits for preflight, so both rerun together. Data are files.
    "preflight": ("sampling", "augmentation", "model", "schedule"),
    "train": ("sampling", "augmentation", "model", "schedule", "compute"),
    "infer": ("model", "inference", "compute"),
    "measure": ("augmentation", "model", "schedule", "compute", "inference", "measure"),
    "report": ("title", "dataset", "report", "schedule", "backbones", "rows", "seeds", "published"),
}


def settings_of_step(study: Study, step: str, with_defaults: bool = False) -> dict[str, Any]:
    """The part of a study that ``step`` depends on.

    Defaults are dropped unless asked for: so a run's identity stays when a later version adds a key.
    """
    everything = study.model_dump(mode="json", exclude_defaults=not with_defaults)
    return {section: everything[section] for section in SECTIONS_OF_STEP[step] if section in everything}


# Settings that change nothing in what a step writes, and their values. Its identity has the first, whatever the study
# says, so that a change of them trains nothing again. Earlier versions put there what the study said.
SKIPPED = {("augmentation", "skip_broken_images"): (False, True)}
# On a GPU sums are rounded differently each time; on a CPU both decide about the last bit, which is repeated there. 8
# threads, since the studies of configs/ said so when their number counted.
ON_A_GPU = {
    ("compute", "channels_last"): (False, True),
    ("compute", "threads"): (8, *range(1, 129)),
    ("compute", "groups_at_once"): (None,),
}
WITHOUT_EFFECT = {
    "preflight": (SKIPPED, {}),
    "train": (SKIPPED, ON_A_GPU),
    "infer": ({}, ON_A_GPU),
    "measure": (SKIPPED, {}),
}


def identities_of_step(study: Study, step: str) -> Iterator[dict[str, Any]]:
    """:func:`settings_of_step` without what has no effect; then all that earlier versions may have had in its place."""
    everything = settings_of_step(study, step)
    always, on_a_gpu = WITHOUT_EFFECT.get(step, ({}, {}))
    free = {**always, **(on_a_gpu if study.compute.device == "cuda" else {})}
    free = {place: values for place, values in free.items() if place[0] in everything}
    for values in itertools.product(*free.values()):
        settings = dict(everything)
        for (section, key), value in zip(free, values, strict=True):
            # False and None are defaults, and defaults are dropped.
            changed = {**settings[section], key: value}
            settings[section] = {name: own for name, own in changed.items() if name != key or own not in (False, None)}
        yield settings


def digests_of(study: Study, step: str) -> Iterator[str]:
    """Hex SHA-256 of each of :func:`identities_of_step`: the digest of the step, then those of earlier versions."""
    return map(sha256_of_json, identities_of_step(study, step))


def settings_digest(study: Study, step: str) -> str:
    """The digest of the step's settings; it stays where they change nothing."""
    return next(digests_of(study, step))


def add_studies(parser: argparse.ArgumentParser) -> None:
    """The options of steps that look at finished and unfinished studies: their files, and where their results lie."""
    parser.add_argument(
        "--study", type=Path, nargs="+", default=[DEFAULT_STUDY], metavar="FILE", help="study files (configs/mini.yaml)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="folder the steps write into (results)"
    )


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        InputError: no such file, no YAML, an unknown or repeated key, a wrong type or a value out of range.
    """
    return check_study(read_yaml(path), where=str(path))


def load_study_for_step(path: Path, step: str, expected_digest: str | None, row: str | None = None) -> Study:
    """:func:`load_study`, which also refuses a file that changed since Snakemake planned this job.

    Args:
        path: the study file.
        step: a key of ``SECTIONS_OF_STEP``.
        expected_digest: of the step's settings; None takes any.
        row: the study is that of this row, where it is a trained one.

    Raises:
        InputError: as :func:`load_study`, or the step's settings are not those of ``expected_digest``, or the study
            trains nothing and the step needs a section of training.
    """
    study = load_study(path)
    if row in study.trained_rows:
        study = study.of_row(row)
    absent = any(getattr(study, section) is None for section in SECTIONS_OF_STEP[step])
    if absent and step not in WITHOUT_TRAINING:
        raise InputError(str(path), f"trains nothing: step {step!r} has no settings", fix="name another study")
    if expected_digest is not None and expected_digest not in digests_of(study, step):
        raise InputError(
            str(path),
            f"the settings of step {step!r} changed after this run was planned",
            allowed="the settings Snakemake recorded when it started",
            fix="start snakemake again",
        )
    return study


def zoo_of(study: Study, study_file: Path) -> Path:
    """The file of published models that a study names."""
    return DEFAULT_ZOO if study.zoo is None else study_file.parent / study.zoo


def check_study(values: Any, where: str) -> Study:
    """Check values as read from YAML, each row with what it changes; ``where`` begins the error message."""
    text = json.dumps(values, default=str)  # a bare date becomes a string
    study = validated(text, where)
    for name, row in study.rows.items():
        if row.changes:
            validated(json.dumps(row_values(json.loads(text), name)), f"{where}: row {name}")
    require_rows_that_differ(study, where)
    return study


def validated(text: str, where: str) -> Study:
    """The study of a JSON text."""
    try:
        return Study.model_validate_json(text)
    except ValidationError as error:
        raise explained(error, where, Study.model_json_schema()) from None


def row_values(values: Mapping[str, Any], row: str) -> dict[str, Any]:
    """The values of a study as if ``row`` were its only one, its changes made in the sections; of no report."""
    only = {key: value for key, value in values.items() if key not in ("backbones", "rows", "published", "report")}
    if row in values.get("backbones", ()):
        return {**only, "backbones": [row]}
    own = dict(values["rows"][row])
    changed = {section: {**(values.get(section) or {}), **own.pop(section)} for section in VARIED if section in own}
    return {**only, **changed, "rows": {row: own}}


def require_rows_that_differ(study: Study, where: str) -> None:
    """InputError for two rows that would have the same numbers."""
    seen: dict[tuple[str, str, str], str] = {}
    for row in study.trained_rows if study.rows else ():
        other = seen.setdefault((*study.training_of(row), settings_digest(study.of_row(row), "infer")), row)
        if other != row:
            what = f"has the backbone and all settings of row {other}"
            raise InputError(f"{where}: row {row}", what, allowed="rows that differ", fix="change a key, or remove it")

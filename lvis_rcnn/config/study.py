"""A study file becomes frozen, checked values, or a clear error.

A step's ``main`` reads the study; rooms take the sections that they need. The JSON Schema for editors
(workflow/schemas/study.schema.json) is generated from these models: ``python -m lvis_rcnn.config --schema FILE``.
"""

import argparse
import difflib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from lvis_rcnn.config.protocols import FEW_PER_IMAGE
from lvis_rcnn.config.schema import (
    Ask,
    Augmentation,
    BackboneName,
    Compute,
    Dataset,
    Evaluation,
    Inference,
    Measure,
    Model,
    Name,
    Published,
    Report,
    Resources,
    Sampling,
    Schedule,
    Section,
)
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.encodings import text_start
from lvis_rcnn.system.files import sha256_of_json

CONFIGS = Path(__file__).parents[2] / "configs"
# The published models, a file of the checkout, so that a study finds it from any working directory.
DEFAULT_ZOO = CONFIGS / "zoo" / "mmdetection.yaml"
# The study that runs where none is named.
DEFAULT_STUDY = CONFIGS / "mini.yaml"

# Steps that also run, with less to do, where nothing is trained.
WITHOUT_TRAINING = ("measure",)

# Value of the sections of training where nothing is trained. Their types do not admit it, since load_study_for_step
# refuses such a study for every step that reads them.
ABSENT: Any = None


class Study(Section):
    """One study: what is trained here, and which published models are scored beside it.

    ``backbones`` are trained, which needs ``sampling``, ``augmentation``, ``schedule`` and ``seeds``; ``published``
    models are only scored. A study has at least one of the two.
    """

    study: Name
    """Name of the study and of its folder in results/."""
    title: str
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
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """One run of each backbone for each seed."""
    zoo: str | None = None
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
    def no_detection_is_kept_for_nothing(self) -> Self:
        """AP counts 300 detections of an image: more are for AP-fixed."""
        kept, protocols = self.inference.detections_per_image, self.evaluation.asked_protocols
        if kept > FEW_PER_IMAGE and not any(one.is_fixed for one in protocols):
            allowed = f"at most {FEW_PER_IMAGE}, not {kept}, or fixed in evaluation.protocols"
            raise ValueError(f"inference.detections_per_image {allowed}: only AP-fixed counts more")
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
        if self.backbones and absent:
            raise ValueError(f"backbones are trained, which also needs {', '.join(absent)}")
        if self.backbones and not self.dataset.is_trained_on:
            raise ValueError("backbones are trained, which also needs dataset.draw, or dataset.train and dataset.val")
        if not self.backbones and not self.published:
            raise ValueError("at least one row: of backbones, which are trained, or of published models")
        return self

    @model_validator(mode="after")
    def points_lie_inside(self) -> Self:
        """Weights are kept within the budget of a training; steps of a budget in epochs are checked when it begins."""
        epochs, steps = self.evaluation.score_at_epochs, self.evaluation.score_at_steps
        if not (epochs or steps):
            return self
        if not self.backbones or self.schedule is None:
            raise ValueError("evaluation.score_at_epochs and score_at_steps only with backbones, which are trained")
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
        for backbone in self.backbones:
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
    "report": ("title", "report", "schedule", "backbones", "seeds", "published"),
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


def load_study_for_step(path: Path, step: str, expected_digest: str | None) -> Study:
    """:func:`load_study`, which also refuses a file that changed since Snakemake planned this job.

    Raises:
        InputError: as :func:`load_study`, or the step's settings are not those of ``expected_digest``, or the study
            trains nothing and the step needs a section of training.
    """
    study = load_study(path)
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
    """Check values as read from YAML; ``where`` begins the error message."""
    try:
        return Study.model_validate_json(json.dumps(values, default=str))  # a bare date becomes a string
    except ValidationError as error:
        raise explained(error, where) from None


class StudyLoader(yaml.SafeLoader):
    """YAML with ``1e-3`` as a number (YAML 1.2; PyYAML reads a string), every error in it with its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value; refuse what is not of its type, as a date without such a day, half a character, and sets."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()
            if isinstance(value, set | bytes):
                raise ValueError
        except (ValueError, LookupError, AttributeError):
            kind = node.tag.rpartition(":")[2]
            shown = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "a value"
            raise refused(f"{shown} cannot be read as {kind}", node) from None
        return value


def refused(what: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    """An error that names the line."""
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
StudyLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def unique_mapping(loader: StudyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Build a mapping; refuse a repeated key, one that JSON does not have, and ``<<``, which YAML 1.2 does not have."""
    if merged := [key for key, _ in node.value if key.tag == "tag:yaml.org,2002:merge"]:
        raise refused("keys of another section (<<) are not copied: write them out", merged[0])
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key, (key_node, _) in zip(keys, node.value, strict=True):
        if not isinstance(key, str | int | float | None):
            raise refused("a key that is no text: write it in quotes", key_node)
        if keys.count(key) > 1:
            raise refused(f"key {key!r} is repeated", node)
    return loader.construct_mapping(node, deep=True)


def decimal_number(loader: StudyLoader, node: yaml.ScalarNode) -> int | float:
    """Build a number; refuse one that YAML 1.1 takes for octal or base 60, and YAML 1.2 for decimal or a text.

    Neither reading would do: Snakemake reads the study, too, by YAML 1.1.
    """
    text = loader.construct_scalar(node)
    as_text = "or in quotes if it is a text"
    if ":" in text:
        raise refused(f"{text[:40]} would be a number in base 60: write it in decimal, {as_text}", node)
    if leading := re.fullmatch(r"([-+]?)0[0_]*([\d_]+)", text):
        what = f"{text[:40]} has leading zeros, which may mean octal"
        raise refused(f"{what}: write {''.join(leading.groups())[:40]}, {as_text}", node)
    number: int | float = NUMBERS[node.tag](loader, node)
    return number


NUMBERS = {
    f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
    for kind in ("int", "float")
}
for number_tag in NUMBERS:
    StudyLoader.add_constructor(number_tag, decimal_number)
StudyLoader.add_constructor("tag:yaml.org,2002:map", unique_mapping)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        InputError: the file is missing or no YAML.
    """
    try:
        content = path.read_bytes()
        return yaml.load(content[text_start(content[:32], str(path)) :].decode(), Loader=StudyLoader)
    except FileNotFoundError:
        raise InputError(str(path), "no such study file", fix="name a file of configs/") from None
    except OSError as error:
        raise InputError(str(path), f"not readable: {error.strerror}", fix="name a file of configs/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"not readable as YAML: {error}", fix="correct the file") from None
    except RecursionError:
        raise InputError(str(path), "not readable as YAML: nested too deeply", fix="correct the file") from None


def explained(error: ValidationError, where: str) -> InputError:
    """The most useful validation error as one line: key, value, what is allowed; further ones are counted.

    An unknown key comes first: it is often the misspelling of a key that is then missing.
    """
    # A list with a wrong entry is reported a second time, as too short.
    errors = [one for one in error.errors() if not (one["type"] == "too_short" and one["input"])]
    first = min(errors, key=lambda one: {"extra_forbidden": 0, "missing": 2}.get(one["type"], 1))
    parts = [str(part) for part in first["loc"]]
    value = json.dumps(first["input"], default=str)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = keys_of(parts[:-1])
        close = difflib.get_close_matches(parts[-1], known, n=1)
        fix = f"write {close[0]!r}" if close else "remove it"
        return InputError(
            f"{where}: {'.'.join(parts)}", f"unknown key{more}", allowed=", ".join(known) or "no such key", fix=fix
        )
    key = ".".join(parts) or "study file"
    if first["type"] == "missing":
        return InputError(f"{where}: {key}", f"missing{more}", fix="add the key")
    if first["type"] == "value_error":
        allowed = first["msg"].removeprefix("Value error, ")
        return InputError(f"{where}: {key}", f"does not fit together{more}", allowed=allowed, fix="change one of them")
    allowed = first["msg"].removeprefix("Input should be ")
    return InputError(f"{where}: {key}", f"is {value[:80]}{more}", allowed=allowed, fix="change the value")


def keys_of(path: list[str]) -> list[str]:
    """Keys that the section at ``path`` knows, from the generated schema."""
    schema = Study.model_json_schema()
    here: dict[str, Any] = schema
    for part in path:
        of_any_name: list[dict[str, Any] | None] = [here.get("items"), *here.get("patternProperties", {}).values()]
        here = next(filter(None, [here.get("properties", {}).get(part), *of_any_name]), {})
        options = here.get("anyOf", [here])
        reference = next((option["$ref"] for option in options if "$ref" in option), None)
        if reference is not None:
            here = schema["$defs"][reference.rsplit("/", 1)[-1]]
    return list(here.get("properties", {}))

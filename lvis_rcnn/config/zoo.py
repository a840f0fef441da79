"""The files of configs/zoo: published models with their digests and numbers, and where LVIS's files come from.

Whatever a study needs of either and does not have can be fetched: ``lacking_weights``, ``lacking_files``.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from lvis_rcnn.config.schema import HEADS, BackboneName, Count, Loss, Name, Positive, Predictor, Section
from lvis_rcnn.config.study import CONFIGS, Study, zoo_of
from lvis_rcnn.config.yaml_files import read_yaml
from lvis_rcnn.dataset.versions import VERSIONS
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.download import download
from lvis_rcnn.system.files import sha256_of_file

DEFAULT_SOURCES = CONFIGS / "zoo" / "lvis.yaml"

# Models of these kinds are scored; the others only initialise a training (model.weights).
SCORED_KINDS = tuple(f"lvis_{version.name}" for version in VERSIONS)
if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[(*SCORED_KINDS, "coco", "imagenet")]

Url = Annotated[str, Field(pattern=r"^https?://\S+$")]
Percent = Annotated[float, Field(ge=0, le=100)]


class NamedRow(Section):
    """A row of one of the files."""

    name: Name
    """Unique in its file."""


Row = TypeVar("Row", bound=NamedRow)


class ZooModel(NamedRow):
    """One published file."""

    kind: Kind
    """What it was trained on; imagenet is a classifier, the others are detectors."""
    backbone: BackboneName
    """Row of ``config.schema.BACKBONES``."""
    schedule: Literal["", "1x", "2x"] = ""
    """Length of the training as the page names it; empty for a classifier."""
    urls: tuple[Url, ...] = Field(min_length=1)
    """Addresses of the file; the first that has it is used. Its name ends in the first 8 digits of its SHA-256."""
    log_url: Url | None = None
    """The training log."""
    memory_gb: Positive | None = None
    """Published Mem (GB)."""
    box_ap: Percent | None = None
    """Published box AP."""
    mask_ap: Percent | None = None
    """Published mask AP."""
    sampling: Literal["none", "image", "instance_aware"] = "image"
    """``sampling.frequency`` of its training; none: each image once an epoch."""
    classification: Loss = "softmax"
    """``model.classification`` of its training, and so the next two."""
    box_classifier: Predictor = "linear"
    mask_predictor: Predictor = "linear"

    @model_validator(mode="after")
    def is_whole(self) -> Self:
        """The file name contains the digest, and a detector has a schedule."""
        names = {url.rsplit("/", 1)[-1] for url in self.urls}
        if len(names) > 1 or digest_in_name(self.file_name) is None:
            raise ValueError("urls that end in one name, …-xxxxxxxx.pth with the first 8 digits of the file's SHA-256")
        if (self.schedule == "") != (self.kind == "imagenet"):
            raise ValueError("a schedule, 1x or 2x, for every detector and for no classifier")
        return self

    def is_trained_like(self, study: Study, backbone: str, schedule: str) -> bool:
        """Whether it has the backbone, and the data, schedule, sampling and heads of a study."""
        sampling = study.sampling.frequency if study.sampling.oversample_threshold else "none"
        own = (self.backbone, self.kind, self.schedule, self.sampling)
        same_heads = all(getattr(self, key) == getattr(study.model, key) for key in HEADS)
        return own == (backbone, study.dataset.name, schedule, sampling) and same_heads

    @property
    def method(self) -> str:
        """What it differs in from the recipe, for a person: ``Seesaw, no oversampling``; often empty."""
        found = {
            "Seesaw": self.classification == "seesaw",
            "normalised mask": self.mask_predictor == "normalised",
            "no oversampling": self.sampling == "none",
            "IRFS": self.sampling == "instance_aware",
        }
        return ", ".join(word for word, is_so in found.items() if is_so)

    @property
    def url(self) -> str:
        """The preferred address, which tables link to."""
        return self.urls[0]

    @property
    def file_name(self) -> str:
        """Last part of the URLs: the name in every folder of weights."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def sha256_prefix(self) -> str:
        """First 8 hexadecimal digits of the file's SHA-256."""
        return str(digest_in_name(self.file_name))


def load_zoo(path: Path) -> dict[str, ZooModel]:
    """The rows of a zoo file by name, in its order.

    Raises:
        InputError: no such file, no YAML, or a row that is incomplete, wrong or repeated.
    """
    if not path.exists():
        raise InputError(str(path), "no such file of published models", fix="set the study's 'zoo', or leave it out")
    return load_rows(path, "models", "published models", ZooModel)


def load_rows(path: Path, key: str, content_name: str, row_type: type[Row]) -> dict[str, Row]:
    """The rows under the one key of a YAML file by name, in its order.

    Raises:
        InputError: see :func:`load_zoo`.
    """
    content = read_yaml(path)
    values = content.get(key) if isinstance(content, dict) else None
    if not isinstance(values, list) or set(content) != {key}:
        allowed = f"one key, {key!r}, with a list of rows"
        raise InputError(str(path), f"is no list of {content_name}", allowed=allowed)
    rows = [checked_row(value, f"{path}: {key}[{number}]", row_type) for number, value in enumerate(values)]
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: {key[:-1]} {name}", "is repeated", fix="rename or remove one of them")
    return {row.name: row for row in rows}


def checked_row(value: Any, where: str, row_type: type[Row]) -> Row:
    """A row as read from YAML, checked; ``where`` begins the error message."""
    try:
        return row_type.model_validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        allowed = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if first["type"] == "value_error":
            raise InputError(where, "does not fit together", allowed=allowed, fix="correct the row") from None
        if first["type"] in ("extra_forbidden", "missing"):
            what = "unknown key" if first["type"] == "extra_forbidden" else "missing"
            raise InputError(f"{where}: {key}", what, allowed=", ".join(row_type.model_fields)) from None
        what = f"is {json.dumps(first['input'], default=str)[:80]}"
        raise InputError(f"{where}: {key or 'row'}", what, allowed=allowed) from None


def digest_in_name(file_name: str) -> str | None:
    """The 8 digits of ``…-xxxxxxxx.pth`` (MMDetection, tools/model_converters/publish_model.py); None without.

    A date, as in ``mine-20260131.pth``, is none.
    """
    found = re.search(r"-(?!20\d\d[01]\d[0-3]\d\.)([0-9a-f]{8})\.pth$", file_name)
    return found[1] if found else None


def checked_sha256(path: Path, expected_prefix: str | None) -> str:
    """SHA-256 of a file.

    Args:
        path: The file.
        expected_prefix: First digits it must have; None checks nothing.

    Raises:
        InputError: the digest is another one: the file is cut off, damaged or not the one its name says.
    """
    found = sha256_of_file(path)
    if expected_prefix is not None and not found.startswith(expected_prefix):
        raise InputError(
            str(path),
            f"its SHA-256 begins with {found[: len(expected_prefix)]}, so it is damaged or another file",
            allowed=f"{expected_prefix}, as its name says",
            fix="delete the file or fetch it again",
        )
    return found


def published_file(model: ZooModel, folder: Path) -> Path:
    """Path of the published file in ``folder``, fetched into it if missing; its digest is checked.

    Raises:
        InputError: the digest is another one, or the file is missing and cannot be fetched.
    """
    path = folder / model.file_name
    if path.exists():
        checked_sha256(path, model.sha256_prefix)
        return path
    download(model.urls, path, sha256=model.sha256_prefix)
    return path


def initial_model(zoo: Mapping[str, ZooModel], kind: str, backbone: str) -> ZooModel:
    """The published file that initialises a training.

    Args:
        zoo: The published models.
        kind: ``imagenet`` or ``coco``; see ``config.Model.weights``.
        backbone: Row of ``config.schema.BACKBONES``.

    Raises:
        InputError: there is no such row; the error lists those of the kind.
    """
    rows = {model.backbone: model for model in zoo.values() if model.kind == kind}
    if backbone not in rows:
        raise InputError(
            "model.weights",
            f"is {kind}, but the zoo has no file of that kind for {backbone}",
            allowed=f"{', '.join(rows) or 'no backbone'} with {kind!r}; every backbone with 'none'",
            fix="add a row to the zoo, or change model.weights",
        )
    return rows[backbone]


def initial_warnings(
    zoo: Mapping[str, ZooModel], initial_weights: Iterable[tuple[str, str]], weights_dir: Path
) -> Iterator[str]:
    """What trainings will fetch when they start, and which of them cannot start; looks into the folder only.

    Args:
        zoo: the published models.
        initial_weights: as ``Study.initial_weights``.
        weights_dir: folder of the published files.
    """
    for kind, backbone in initial_weights:
        try:
            model = initial_model(zoo, kind, backbone)
        except InputError as error:
            yield f"{error}; its training will not start"
            continue
        if not (weights_dir / model.file_name).exists():
            yield f"model.weights: {model.file_name} is not in {weights_dir}; training will fetch it from {model.url}"


def known_models(study: Study, study_file: Path) -> dict[str, ZooModel]:
    """All rows of the study's zoo: those that it scores and those that its trainings are compared with.

    Raises:
        InputError: as :func:`scored_models`, or the zoo is wrong.
    """
    scored_models(study, study_file)
    return load_zoo(zoo_of(study, study_file))


def scored_models(study: Study, study_file: Path) -> dict[str, ZooModel]:
    """The zoo's row of each published row of ``study``, in the study's order; without such rows no zoo is read.

    Raises:
        InputError: the zoo is wrong, has no such model, or one of other categories.
    """
    if not study.published:
        return {}
    zoo = load_zoo(zoo_of(study, study_file))
    models = {}
    for row in study.published:
        where = f"{study_file}: published {row.model}"
        scored = [name for name, model in zoo.items() if model.kind in SCORED_KINDS]
        if row.model not in zoo:
            raise InputError(where, "is not in the zoo", allowed=", ".join(scored), fix="name a model of the zoo")
        kind = zoo[row.model].kind
        if kind not in SCORED_KINDS:
            what = f"is a model of kind {kind}, whose categories are not those of LVIS"
            fix = "name a model of LVIS; this one can initialise a training (model.weights)"
            raise InputError(where, what, allowed=", ".join(scored), fix=fix)
        models[row.model] = zoo[row.model]
    return models


class Counts(Section):
    """Contents of an annotation file."""

    images: Count
    """Number of images."""
    categories: Count
    """Number of categories."""


class Source(NamedRow):
    """One file of the dataset."""

    provides: Annotated[str, Field(pattern=r"^[\w.-]+\.(json|zip)$")]
    """Name of the file; a .json is unpacked from the zip that is downloaded, a .zip stays."""
    urls: tuple[Url, ...] = Field(min_length=1)
    """Addresses of the zip; the first one that has it is used."""
    size_bytes: Count | None = None
    """Length of the zip, where published."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Digest of the zip, where published."""
    counts: Counts | None = None
    """Contents of a file without a published digest."""
    images: tuple[Name, ...] = ()
    """Rows of the zips that hold the images of these annotations."""

    @property
    def zip_name(self) -> str:
        """Name of the zip that is downloaded."""
        return self.urls[0].rsplit("/", 1)[-1]

    @property
    def is_unpacked(self) -> bool:
        """Whether the file is in the zip, and not the zip itself."""
        return self.provides.endswith(".json")


def load_sources(path: Path = DEFAULT_SOURCES) -> dict[str, Source]:
    """The rows by name.

    Raises:
        InputError: no such file, no YAML, a row that is incomplete, wrong or repeated, or images without a row.
    """
    sources = load_rows(path, "files", "files to fetch", Source)
    for source in sources.values():
        for name in source.images:
            if name not in sources:
                where = f"{path}: file {source.name}: images"
                raise InputError(where, f"names {name}", allowed=", ".join(sources), fix="add the row")
    return sources


def lacking_files(study: Study, sources: Mapping[str, Source]) -> dict[str, Source]:
    """The files that a study names, does not have and could fetch, by the path where each belongs; reads no file.

    A source is recognised by the name of its file, so a study of other files lacks nothing. Images may be a zip or a
    folder.
    """
    lacking = {}
    by_file = {source.provides: source for source in sources.values()}
    for split in (study.dataset.train, study.dataset.val, *study.dataset.splits.values()):
        source = by_file.get(Path(split.annotations).name) if split else None
        if split is None or source is None:
            continue
        if not os.path.lexists(split.annotations):
            lacking[split.annotations] = source
        for images in (sources[name] for name in source.images):
            if not images_at_hand(Path(split.images), images):
                lacking[str(Path(split.images, images.provides))] = images
    return lacking


def images_at_hand(folder: Path, images: Source) -> bool:
    """Whether the folder of images contains the zip or its unpacked folder, or is that unpacked folder itself."""
    unpacked = images.provides.removesuffix(".zip")
    places = [folder / images.provides, folder / unpacked, *([folder] if folder.name == unpacked else [])]
    # A dangling link is a disk that is not mounted: no reason to fetch 19 GB.
    return any(os.path.lexists(place) for place in places)


def lacking_weights(study: Study, study_file: Path) -> dict[str, ZooModel]:
    """The published weights that a study scores or starts from and does not have, by their path.

    Backbones without initial weights in the zoo are left out: preflight reports them.

    Raises:
        InputError: the zoo is wrong, or has no model that is scored.
    """
    models = [*scored_models(study, study_file).values(), *initial_models(study, study_file)]
    paths = {f"{study.resources.weights_dir}/{model.file_name}": model for model in models}
    return {path: model for path, model in paths.items() if not os.path.lexists(path)}


def initial_zoo(study: Study, study_file: Path) -> dict[str, ZooModel]:
    """All published models where a training of the study starts from one; no zoo is read for others.

    Raises:
        InputError: the zoo is wrong.
    """
    return load_zoo(zoo_of(study, study_file)) if study.initial_weights else {}


def initial_models(study: Study, study_file: Path) -> Iterator[ZooModel]:
    """The published weights that the trainings of a study start from; the zoo is read only if there are some."""
    zoo = initial_zoo(study, study_file)
    for kind, backbone in study.initial_weights:
        try:
            yield initial_model(zoo, kind, backbone)
        except InputError:
            continue

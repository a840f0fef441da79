"""Where the files of LVIS come from, as rows of a file, and which of them a study lacks.

configs/zoo/lvis.yaml is that file. Nothing here imports torch, so that the workflow can read it.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lvis_rcnn.command import InputError
from lvis_rcnn.config import Study, zoo_of
from lvis_rcnn.published import scored_models
from lvis_rcnn.sections import Count, Name, Section, Split
from lvis_rcnn.zoo import NamedRow, Url, ZooModel, initial_model, load_rows, load_zoo

DEFAULT_SOURCES = Path(__file__).parents[1] / "configs" / "zoo" / "lvis.yaml"


class Counts(Section):
    """What a file is known to hold."""

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
    """What the file holds, for one without a published digest."""
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
        InputError: no such file, no YAML, a row that is incomplete, wrong or there twice, or images that are no row.
    """
    sources = load_rows(path, "files", "files to fetch", Source)
    for source in sources.values():
        for name in source.images:
            if name not in sources:
                where = f"{path}: file {source.name}: images"
                raise InputError(where, f"names {name}", allowed=", ".join(sources), mend="add the row")
    return sources


def lacking_files(study: Study, sources: Mapping[str, Source]) -> dict[str, Source]:
    """What of ``sources`` a study names and does not have, by the path where it shall lie; looks at the disk only.

    A path is recognised by its file name, so that a study of other files lacks nothing that could be fetched. Images
    are at hand as a zip or as a folder.
    """
    lacking = {}
    by_file = {source.provides: source for source in sources.values()}
    for split in splits_of_files(study):
        source = by_file.get(Path(split.annotations).name)
        if source is None:
            continue
        if not os.path.lexists(split.annotations):
            lacking[split.annotations] = source
        for images in (sources[name] for name in source.images):
            if not images_at_hand(Path(split.images), images):
                lacking[str(Path(split.images, images.provides))] = images
    return lacking


def splits_of_files(study: Study) -> Iterator[Split]:
    """The splits that are not drawn."""
    for split in (study.dataset.train, study.dataset.val, *study.dataset.splits.values()):
        if split is not None:
            yield split


def images_at_hand(folder: Path, images: Source) -> bool:
    """Whether a folder of images holds those of a zip, in it or unpacked, or is that unpacked folder itself."""
    unpacked = images.provides.removesuffix(".zip")
    places = [folder / images.provides, folder / unpacked, *([folder] if folder.name == unpacked else [])]
    # A link that leads nowhere is a disk that is not mounted: no reason to fetch 19 GB.
    return any(os.path.lexists(place) for place in places)


def lacking_weights(study: Study, study_file: Path) -> dict[str, ZooModel]:
    """The published weights that a study scores or begins with and does not have, by their path.

    Backbones that the zoo has no initial weights for are left out: preflight says so.

    Raises:
        InputError: the zoo is wrong, or has no model that is scored.
    """
    models = [*scored_models(study, study_file).values(), *initial_models(study, study_file)]
    paths = {f"{study.resources.weights_dir}/{model.file_name}": model for model in models}
    return {path: model for path, model in paths.items() if not os.path.lexists(path)}


def initial_models(study: Study, study_file: Path) -> Iterator[ZooModel]:
    """The published weights that the trainings of a study begin with; the zoo is read only where there are some."""
    backbones = study.backbones if study.model.weights != "none" else ()
    zoo = load_zoo(zoo_of(study, study_file)) if backbones else {}
    for backbone in backbones:
        try:
            yield initial_model(zoo, study.model.weights, backbone)
        except InputError:
            continue

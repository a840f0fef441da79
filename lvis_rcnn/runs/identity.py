"""What a run is: two of one identity end with the same weights, so that one goes on from the state of the other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from lvis_rcnn.config.study import Study, digests_of
from lvis_rcnn.config.zoo import ZooModel, initial_model
from lvis_rcnn.runs.records import read_json_object
from lvis_rcnn.runs.shapes import Heartbeat
from lvis_rcnn.system.files import sha256_of_json

# Increased by every change of the code that changes the weights that a run ends with: older state is then not resumed.
TRAINER_REVISION = 3

# Increased by every change of what metrics.json or matches.npz hold for the same detections: they are scored again.
SCORING_REVISION = 2

# Rows of dataloader.seeds.ORDERS, the newest first: how the order of the images of an epoch follows from the seed. That
# of seed 0 is the same in all.
ORDERS = ("independent", "mmengine")


def state_folder_name(digest: str) -> str:
    """Name of the state folder of a run of this identity."""
    return digest[:12]


@dataclass(frozen=True)
class Identity:
    """Everything that changes the model that a run ends with."""

    digest: str
    """Hex SHA-256 of it."""
    order: str
    """A row of ``ORDERS``."""

    @property
    def folder_name(self) -> str:
        """Name of the state folder of a run; runs of other settings, data or seeds have other folders."""
        return state_folder_name(self.digest)


def identities(
    study: Study, backbone: str, seed: int, annotations_sha256: str, zoo: Mapping[str, ZooModel]
) -> Iterator[Identity]:
    """The identity of a run, then those that earlier versions gave to it and to runs that end with the same model."""
    kind = study.model.weights
    # Its name carries the file's digest.
    initial_weights = None if kind == "none" else initial_model(zoo, kind, backbone).file_name
    for order, settings in product(ORDERS if seed else ORDERS[:1], digests_of(study, "train")):
        parts = {
            "revision": TRAINER_REVISION,
            "settings": settings,
            "backbone": backbone,
            "seed": seed,
            "annotations": annotations_sha256,
            "initial_weights": initial_weights,
        }
        # As before there was a second order.
        has_it = seed == 0 or order == "mmengine"
        yield Identity(sha256_of_json(parts if has_it else {**parts, "order": order}), order)


def own_identity(folder: Path, known: Iterator[Identity]) -> Identity:
    """Of those that a run may have, the one with which it has come furthest; the first where it has not begun.

    Args:
        folder: of the states of its backbone and seed.
        known: as :func:`identities`.
    """
    first = next(known)
    begun = {path.name for path in folder.glob("*") if path.is_dir()}
    if begun <= {first.folder_name}:
        return first
    found = [one for one in (first, *known) if one.folder_name in begun]
    return max(found, key=lambda one: steps_done(folder / one.folder_name), default=first)


def steps_done(state_dir: Path) -> int:
    """Steps that a run had taken when it wrote its last heartbeat; 0 where there is none."""
    steps: int = read_json_object(state_dir / "progress.json", Heartbeat).get("step", 0)
    return steps

"""What makes two trainings the same; apart from the trainer, since onlookers ask too and must not wait for torch."""

from collections.abc import Mapping

from lvis_rcnn.config import Study, settings_digest
from lvis_rcnn.files import sha256_of_json
from lvis_rcnn.zoo import ZooModel, initial_model

# Raised when a change of the code changes the weights that a run ends with: older state is then not resumed.
TRAINER_REVISION = 3


def run_digest(study: Study, backbone: str, seed: int, annotations_sha256: str, zoo: Mapping[str, ZooModel]) -> str:
    """Hex SHA-256 of everything that changes the model that a run ends with."""
    kind = study.model.weights
    return sha256_of_json(
        {
            "revision": TRAINER_REVISION,
            "settings": settings_digest(study, "train"),
            "backbone": backbone,
            "seed": seed,
            "annotations": annotations_sha256,
            # Its name carries the file's digest.
            "initial_weights": None if kind == "none" else initial_model(zoo, kind, backbone).file_name,
        }
    )


def state_folder_name(digest: str) -> str:
    """Name of the state folder of a run; another recipe, dataset or seed never meets its checkpoints."""
    return digest[:12]

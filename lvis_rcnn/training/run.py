"""A run: what it is made from, its identity, and the files it leaves: model, record and log."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import Study, settings_digest, settings_of_step
from lvis_rcnn.config.zoo import ZooModel
from lvis_rcnn.dataloader.repeat_factors import read_sampling
from lvis_rcnn.dataloader.sampler import stream_of
from lvis_rcnn.dataset.store import AnnotationStore, open_store
from lvis_rcnn.model.mask_rcnn import PRECISIONS
from lvis_rcnn.model.weights import save_model
from lvis_rcnn.runs.attempts import cost_of, read_attempts
from lvis_rcnn.runs.identity import ORDERS, Identity, identities, own_identity
from lvis_rcnn.runs.records import read_json_object
from lvis_rcnn.runs.shapes import Trained
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.files import link, sha256_of_file, write_json
from lvis_rcnn.system.provenance import code_version, library_versions
from lvis_rcnn.training.checkpoint import drop_checkpoints, on_cpu
from lvis_rcnn.training.log import Progress, write_heartbeat
from lvis_rcnn.training.solver import Recipe, kept_steps, make_recipe, point_errors

FILES_OF_RUN = ("log.json", "model.pth", "train.json")  # in its folder of results


@dataclass(frozen=True)
class Run:
    """One row and seed of a study: what it is made from and where its state lives."""

    study: Study
    """As the row sees it (``Study.of_row``)."""
    row: str
    seed: int
    store_path: Path
    images_dir: Path
    repeat_factors_dir: Path
    state_root: Path
    zoo: Mapping[str, ZooModel]
    """The published models: initial weights are from there."""

    @property
    def backbone(self) -> str:
        """Row of ``config.schema.BACKBONES``."""
        return self.study.backbone_of(self.row)

    @cached_property
    def store(self) -> AnnotationStore:
        """Annotations of the training split."""
        return open_store(self.store_path)

    @cached_property
    def identity(self) -> Identity:
        """What it is, as it was begun: by an earlier version perhaps, whose order of images it then keeps."""
        known = identities(self.study, self.backbone, self.seed, self.store.annotations_sha256, self.zoo)
        return own_identity(self.states_dir, known)

    @property
    def digest(self) -> str:
        """Hex digest of its identity."""
        return self.identity.digest

    @cached_property
    def recipe(self) -> Recipe:
        """Its sample stream and schedule.

        Raises:
            InputError: as :func:`read_sampling`, or the repeat factors are of another store.
        """
        sampling = read_sampling(self.repeat_factors_dir)
        if len(sampling.factors) != self.store.num_images:
            raise InputError(
                str(self.repeat_factors_dir),
                f"has factors of {len(sampling.factors)} images",
                allowed=f"those of the {self.store.num_images} images of {self.store_path}",
                fix="write it again with python -m lvis_rcnn repeat_factors --store",
            )
        # All orders of seed 0 are the same, which is all that a measurement needs.
        order = self.identity.order if self.seed else ORDERS[0]
        schedule = self.study.schedule
        return make_recipe(schedule, stream_of(sampling, self.store, schedule, self.seed, order))

    @cached_property
    def kept_steps(self) -> frozenset[int]:
        """Steps after which weights are kept to be scored, whether or not the training has ended.

        Raises:
            InputError: one is beyond the last step.
        """
        for problem in point_errors(self.recipe, self.study.evaluation):
            raise InputError(problem.where, problem.what, allowed=problem.allowed, fix=problem.fix)
        return kept_steps(self.recipe, self.study.evaluation)

    @property
    def states_dir(self) -> Path:
        """Folder of the states of this row and seed."""
        return self.state_root / self.study.study / self.row / f"seed{self.seed}"

    @property
    def state_dir(self) -> Path:
        """Folder of this run, named by its identity."""
        return self.states_dir / self.identity.folder_name


def is_finished(state_dir: Path) -> bool:
    """Whether a run is complete; its record is written last."""
    return (state_dir / "train.json").exists()


def finish(run: Run, weights: dict[str, torch.Tensor], progress: Progress) -> None:
    """Write model and record into the state folder, then drop the checkpoints."""
    finished_at = datetime.now(UTC)
    # On the CPU, so that the file can be read on a machine without a GPU, as MMDetection's.
    meta = model_meta(run, run.recipe.steps) | {"time": finished_at.isoformat(timespec="seconds")}
    save_model(run.state_dir / "model.pth", on_cpu(weights), meta)
    write_json(run.state_dir / "train.json", run_record(run, progress, finished_at))
    write_heartbeat(run.state_dir, progress, run.recipe, "done")
    drop_checkpoints(run.state_dir)


def model_meta(run: Run, steps: int) -> dict[str, Any]:
    """The meta of model.pth, or of the weights after fewer steps; the same whenever they are written."""
    return {
        "study": run.study.study,
        "backbone": run.backbone,
        "seed": run.seed,
        "run_digest": run.digest,
        "CLASSES": tuple(category.name for category in run.store.categories),
        # With these a model is used without its study.
        "settings": settings_of_step(run.study, "infer", with_defaults=True),
        "steps": steps,
        "epochs": run.recipe.epochs_after(steps),
        "code_version": code_version(),
    }


def run_record(run: Run, progress: Progress, finished_at: datetime) -> dict[str, Any]:
    """The value of train.json: how a run was trained."""
    recipe = run.recipe
    model_sha256 = sha256_of_file(run.state_dir / "model.pth")
    stem = f"{published_stem(run.study, run.row, run.seed)}_{finished_at:%Y%m%d_%H%M%S}"
    return {
        "format": "lvis_rcnn.run",
        "version": 1,
        "study": run.study.study,
        "backbone": run.backbone,
        "seed": run.seed,
        "settings_digest": settings_digest(run.study, "train"),
        "settings": settings_of_step(run.study, "train", with_defaults=True),
        "run_digest": run.digest,
        "image_order": run.recipe.stream.order,
        "annotations_sha256": run.store.annotations_sha256,
        "num_categories": len(run.store.categories),
        "steps": recipe.steps,
        "images_per_step": recipe.images_per_step,
        "images_seen": recipe.images_seen,
        "skipped_images": progress.skipped_images,
        "broken_images": len(progress.broken_images),
        "epoch_length": recipe.epoch_length,
        "epochs": recipe.images_seen / recipe.epoch_length,
        "initial_weights": progress.initial_weights,
        "normalisation_group": run.study.schedule.normalisation_group,
        **hardware(run.study, progress),
        "elapsed_s": progress.elapsed_s,
        "started_at": datetime.fromtimestamp(progress.started_at, UTC).isoformat(timespec="seconds"),
        "finished_at": finished_at.isoformat(timespec="seconds"),
        "attempts": progress.attempts,
        "cost": asdict(cost_of(read_attempts(run.state_dir), finished_at.timestamp()))
        | {"peak_memory_gb": progress.peak_memory_bytes / 2**30},
        "model_file": f"{stem}-{model_sha256[:8]}.pth",
        "log_file": f"{stem}.log.json",
        "model_sha256": model_sha256,
        "versions": library_versions(),
        "code_version": code_version(),
    }


def hardware(study: Study, progress: Progress) -> dict[str, Any]:
    """Device, precision and peak memory of a run; memory is measured as in MMDetection's docs/model_zoo.md."""
    on_cpu = study.compute.device == "cpu"
    edges = ", ".join(str(edge) for edge in study.augmentation.short_edges_px)
    return {
        "memory_gb": progress.peak_memory_bytes / 2**30,
        "memory_definition": (
            "peak resident memory of the training process" if on_cpu else "peak of torch.cuda.max_memory_allocated"
        ),
        "device": "cpu" if on_cpu else torch.cuda.get_device_name(),
        "threads": study.compute.threads,
        "ranks": progress.ranks,
        "passes": progress.passes,
        "precision": PRECISIONS[study.compute.precision],
        "resolution": f"short edge {edges} px, long edge at most {study.augmentation.long_edge_px} px",
    }


def published_stem(study: Study, row: str, seed: int) -> str:
    """File name as MMDetection's, without time and digest; with the name of a row that is called otherwise."""
    threshold = study.sampling.oversample_threshold
    sampling = f"_sample{scientific(threshold)}" if threshold else ""
    scales = "_mstrain" if len(study.augmentation.short_edges_px) > 1 else ""
    schedule = f"{study.schedule.epochs}e" if study.schedule.epochs else f"{study.schedule.steps}it"
    stem = f"mask_rcnn_{BACKBONES[study.backbone_of(row)].file_stem}{sampling}{scales}_{schedule}_{study.study}"
    return f"{stem}_{row}_seed{seed}" if row in study.rows else f"{stem}_seed{seed}"


def scientific(value: float) -> str:
    """``1e-3`` for 0.001: short, but with all digits."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def export(state_dir: Path, out_dir: Path) -> None:
    """Put the files of a finished run into ``out_dir``, and once more under names as MMDetection publishes them.

    They are hard links where the file system has them: the state folder keeps the run when Snakemake deletes its
    outputs, and takes no more space.

    Raises:
        InputError: the record is damaged, or the model is, or it is missing.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    record, model = read_json_object(state_dir / "train.json", Trained), state_dir / "model.pth"
    fix = f"restore it, from {out_dir} perhaps, or delete {state_dir} to train again"
    if not record:
        raise InputError(str(state_dir / "train.json"), "damaged record of a training", fix=fix)
    if not model.exists() or record.get("model_sha256") not in (None, sha256_of_file(model)):
        raise InputError(str(model), "missing or damaged: it is not the file that train.json beside it names", fix=fix)
    for old in (*out_dir.glob("mask_rcnn_*.pth"), *out_dir.glob("mask_rcnn_*.log.json")):
        old.unlink()
    link(model, out_dir / record["model_file"])
    link(state_dir / "log.json", out_dir / record["log_file"])
    for name in FILES_OF_RUN:
        link(state_dir / name, out_dir / name)

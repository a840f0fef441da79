"""The studies of LVIS are the published recipe, value by value: a table of it, and the real config of MMDetection."""

import json

import pytest

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.study import load_study
from lvis_rcnn.dataloader.repeat_factors import MIN_EDGE_PX
from lvis_rcnn.dataloader.transforms import MEAN_RGB, PAD_MULTIPLE_PX, STD_RGB
from tests.conftest import REPOSITORY

# MMDetection 2.28.2 and 3.3.0: configs/lvis/, configs/_base_/; value for LVIS v0.5, "2x", and for LVIS v1, "1x".
RECIPE = {
    "dataset.train.annotations": (
        "data/lvis_v0.5/annotations/lvis_v0.5_train.json",
        "data/lvis_v1/annotations/lvis_v1_train.json",
    ),
    "dataset.val.annotations": (
        "data/lvis_v0.5/annotations/lvis_v0.5_val.json",
        "data/lvis_v1/annotations/lvis_v1_val.json",
    ),
    "sampling.oversample_threshold": (1e-3, 1e-3),
    "sampling.rounding": ("ceil", "ceil"),
    "sampling.exponent": (0.5, 0.5),
    "sampling.frequency": ("image", "image"),
    "augmentation.short_edges_px": ((640, 672, 704, 736, 768, 800),) * 2,
    "augmentation.long_edge_px": (1333, 1333),
    "augmentation.flip_probability": (0.5, 0.5),
    "model.weights": ("imagenet", "imagenet"),
    "model.normalization": ("fixed_batch", "fixed_batch"),
    "model.frozen_stages": (1, 1),
    "model.anchor_scale": (8, 8),
    "model.anchors_per_image": (256, 256),
    "model.rois_per_image": (512, 512),
    "model.roi_positive_fraction": (0.25, 0.25),
    "model.proposals_before_nms": (2000, 2000),
    "model.proposals_after_nms": (1000, 1000),
    "model.classification": ("softmax", "softmax"),
    "model.box_classifier": ("linear", "linear"),
    "model.mask_predictor": ("linear", "linear"),
    "schedule.images_per_step": (16, 16),
    "schedule.normalisation_group": (2, 2),
    "schedule.epochs": (24, 12),
    "schedule.optimizer": ("sgd", "sgd"),
    "schedule.learning_rate": (0.02, 0.02),
    "schedule.learning_rate_images": (16, 16),
    "schedule.momentum": (0.9, 0.9),
    "schedule.weight_decay": (1e-4, 1e-4),
    "schedule.policy": ("step", "step"),
    "schedule.warmup_steps": (500, 500),
    "schedule.warmup_start_factor": (0.001, 0.001),
    "schedule.decay_at_epochs": ((16, 22), (8, 11)),
    "schedule.decay_factor": (0.1, 0.1),
    "schedule.gradient_clip_norm": (None, None),
    "compute.precision": ("fp32", "fp32"),
    "compute.common_canvas": (False, False),
    "resources.log_every_steps": (50, 50),
    "backbones": (("r50", "r101", "x101_32x4d", "x101_64x4d"),) * 2,
    "inference.short_edge_px": (800, 800),
    "inference.long_edge_px": (1333, 1333),
    "inference.proposals_before_nms": (1000, 1000),
    "inference.proposals_after_nms": (1000, 1000),
    "inference.score_threshold": (1e-4, 1e-4),
    "inference.nms_iou": (0.5, 0.5),
    "inference.nms": ("exact", "exact"),  # mmcv's offsets round coordinates only
    "inference.detections_per_image": (300, 300),
    "inference.batch_size": (1, 1),
    "inference.precision": ("fp32", "fp32"),
    "inference.masks": ("all", "all"),
    "inference.calibration": (None, None),
    "evaluation.detections_per_image": (300, 300),
}
# What a study says of itself and of the machine; and steps, which a budget in epochs excludes.
NOT_THE_RECIPES = {
    *("study", "title", "dataset.name", "dataset.train.images", "dataset.val.images", "seeds"),
    *("augmentation.skip_broken_images", "compute.device", "compute.threads", "compute.channels_last"),
    *("compute.groups_at_once", "dataset.train.exhaustive", "dataset.val.exhaustive"),
    *("resources.loader_workers", "resources.memory_mb", "resources.runtime_minutes", "resources.weights_dir"),
    "resources.checkpoint_seconds",
    "resources.decode_images",
    *("resources.gpus", "resources.nodes", "resources.gpu_model", "resources.cpus_per_gpu", "resources.of_backbone"),
    *(f"model.seesaw.{key}" for key in ("mitigation", "compensation", "epsilon", "counters")),
    *("measure.training_steps", "measure.images", "evaluation.bootstrap_resamples"),
    *("evaluation.protocols", "evaluation.subsets", "evaluation.score_images"),
    *("evaluation.score_at_epochs", "evaluation.score_at_steps"),
    *("dataset.draw", "dataset.splits", "schedule.steps", "zoo", "published", "report.base_url"),
    *("report.compare_with", "report.baseline", "rows"),
}


def flat(section, prefix=""):
    """Values of a study under dotted keys; a setting's empty section is a value."""
    found = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def written(study):
    """The values that the file itself holds."""
    return flat(load(study).model_dump(exclude_unset=True))


def load(study):
    return load_study(REPOSITORY / "configs" / f"{study}.yaml")


@pytest.mark.parametrize(("study", "column"), [("lvis_v0.5", 0), ("lvis_v1", 1)])
def test_every_value_is_written_and_the_recipes(study, column):
    expected = {key: values[column] for key, values in RECIPE.items()}
    assert {key: value for key, value in written(study).items() if key not in NOT_THE_RECIPES} == expected


@pytest.mark.parametrize("study", ["lvis_v0.5", "lvis_v1"])
def test_no_setting_is_forgotten(study):
    """A new setting of studies belongs to the table or to what is not the recipe's."""
    every_key = set(flat(load(study).model_dump()))
    assert every_key - NOT_THE_RECIPES == set(RECIPE)


def test_the_study_is_the_config_of_mmdetection():
    """The real one: lvis/mask-rcnn_r50_fpn_sample1e-3_ms-2x_lvis-v0.5.py of 3.3.0, with what it inherits."""
    study = load("lvis_v0.5")
    config = json.loads((REPOSITORY / "tests" / "golden" / "config_r50_lvis05.json").read_text())
    assert config_values(config) == {
        "annotations": (study.dataset.train.annotations, study.dataset.val.annotations),
        "oversample_threshold": study.sampling.oversample_threshold,
        "smallest_edge_px": MIN_EDGE_PX,
        "train_scales": [[study.augmentation.long_edge_px, edge] for edge in study.augmentation.short_edges_px],
        "flip_probability": study.augmentation.flip_probability,
        "test_scale": [study.inference.long_edge_px, study.inference.short_edge_px],
        "pixels": (MEAN_RGB.astype(float).round(4).tolist(), STD_RGB.astype(float).round(4).tolist(), PAD_MULTIPLE_PX),
        "backbone": (50, study.model.frozen_stages, study.model.normalization == "fixed_batch"),
        "anchor_scales": [study.model.anchor_scale],
        "samplers": (study.model.anchors_per_image, study.model.rois_per_image, study.model.roi_positive_fraction),
        "train_proposals": (study.model.proposals_before_nms, study.model.proposals_after_nms),
        "test_proposals": (study.inference.proposals_before_nms, study.inference.proposals_after_nms),
        "detections": (
            study.inference.score_threshold,
            {"type": "nms", "iou_threshold": study.inference.nms_iou},
            study.inference.detections_per_image,
        ),
        "images_of_a_gpu": study.schedule.normalisation_group,
        "rate_is_for": study.schedule.learning_rate_images,
        "epochs": study.schedule.epochs,
        "warm_up": (study.schedule.warmup_start_factor, study.schedule.warmup_steps),
        "decay": (list(study.schedule.decay_at_epochs), study.schedule.decay_factor),
        "optimizer": {
            "type": study.schedule.optimizer.upper(),
            "lr": study.schedule.learning_rate,
            "momentum": study.schedule.momentum,
            "weight_decay": study.schedule.weight_decay,
        },
        "gradient_clip": study.schedule.gradient_clip_norm,
        "log_every_steps": study.resources.log_every_steps,
    }


def config_values(config):
    """What the study can say, read from the config."""
    model, loader = config["model"], config["train_dataloader"]
    training, test = model["train_cfg"], model["test_cfg"]
    oversampled, dataset = loader["dataset"], loader["dataset"]["dataset"]
    steps_of = {step["type"]: step for step in dataset["pipeline"] + config["test_pipeline"]}
    warm_up, decay = config["param_scheduler"]
    pixels = model["data_preprocessor"]
    splits = (dataset, config["val_dataloader"]["dataset"])
    return {
        "annotations": tuple(split["data_root"] + split["ann_file"] for split in splits),
        "oversample_threshold": oversampled["oversample_thr"],
        "smallest_edge_px": dataset["filter_cfg"]["min_size"],
        "train_scales": steps_of["RandomChoiceResize"]["scales"],
        "flip_probability": steps_of["RandomFlip"]["prob"],
        "test_scale": steps_of["Resize"]["scale"],
        "pixels": (pixels["mean"], pixels["std"], pixels["pad_size_divisor"]),
        "backbone": tuple(model["backbone"][key] for key in ("depth", "frozen_stages", "norm_eval")),
        "anchor_scales": model["rpn_head"]["anchor_generator"]["scales"],
        "samplers": (
            training["rpn"]["sampler"]["num"],
            training["rcnn"]["sampler"]["num"],
            training["rcnn"]["sampler"]["pos_fraction"],
        ),
        "train_proposals": (training["rpn_proposal"]["nms_pre"], training["rpn_proposal"]["max_per_img"]),
        "test_proposals": (test["rpn"]["nms_pre"], test["rpn"]["max_per_img"]),
        "detections": tuple(test["rcnn"][key] for key in ("score_thr", "nms", "max_per_img")),
        "images_of_a_gpu": loader["batch_size"],
        "rate_is_for": config["auto_scale_lr"]["base_batch_size"],
        "epochs": config["train_cfg"]["max_epochs"],
        "warm_up": (warm_up["start_factor"], warm_up["end"] - warm_up["begin"]),
        "decay": (decay["milestones"], decay["gamma"]),
        "optimizer": config["optim_wrapper"]["optimizer"],
        "gradient_clip": config["optim_wrapper"].get("clip_grad"),
        "log_every_steps": config["default_hooks"]["logger"]["interval"],
    }


def test_the_four_backbones_are_the_published_ones():
    """Blocks of each stage, groups, width of a group; ResNet-50 and -101 and ResNeXt-101."""
    shapes = {name: (row.blocks, row.groups, row.width_per_group) for name, row in BACKBONES.items()}
    assert shapes == {
        "r50": ((3, 4, 6, 3), 1, 64),
        "r101": ((3, 4, 23, 3), 1, 64),
        "x101_32x4d": ((3, 4, 23, 3), 32, 4),
        "x101_64x4d": ((3, 4, 23, 3), 64, 4),
    }

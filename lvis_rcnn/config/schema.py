"""The sections of a study file: names, types, ranges, defaults; two more are in machine.py. study.py joins them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from lvis_rcnn.config import MOST_EXPONENT, MOST_RESAMPLES
from lvis_rcnn.config.protocols import Protocol, protocols_by_name
from lvis_rcnn.system.cli import LARGEST_SEED


@dataclass(frozen=True)
class Backbone:
    """One row: how the network is built and what the table calls it."""

    title: str
    """Name in the table."""
    file_stem: str
    """Part of the published file name, as MMDetection spells it."""
    blocks: tuple[int, int, int, int]
    """Bottlenecks of stages 1 to 4."""
    groups: int
    """Groups of each 3x3 convolution."""
    width_per_group: int
    """Channels of one group in stage 1; 64 with one group is the plain ResNet."""
    style: str = "pytorch"


# By cost, the cheapest first: the trainings of a study start with the last.
BACKBONES = {
    "r50": Backbone("R-50-FPN", "r50_fpn", (3, 4, 6, 3), groups=1, width_per_group=64),
    "r101": Backbone("R-101-FPN", "r101_fpn", (3, 4, 23, 3), groups=1, width_per_group=64),
    "x101_32x4d": Backbone("X-101-32x4d-FPN", "x101_32x4d_fpn", (3, 4, 23, 3), groups=32, width_per_group=4),
    "x101_64x4d": Backbone("X-101-64x4d-FPN", "x101_64x4d_fpn", (3, 4, 23, 3), groups=64, width_per_group=4),
}

BackboneName = Literal["r50", "r101", "x101_32x4d", "x101_64x4d"]
assert set(BackboneName.__args__) == set(BACKBONES)  # type: ignore[attr-defined]

# Names are parts of names of files, those of rows names of Snakemake's rules, too.
NAME, ROW_NAME = r"^[a-z0-9][a-z0-9_.]{0,99}$", r"^[a-z][a-z0-9_]{0,99}$"
LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"  # with line separators and marks that reverse text
IN_WORDS = {
    NAME: "at most 100 lower-case letters, digits, '_' and '.', a letter or digit first",
    ROW_NAME: "at most 100 lower-case letters, digits and '_', a letter first",
    LINE: "one line of text without control characters",
}
Name = Annotated[str, Field(pattern=NAME, description=IN_WORDS[NAME])]
RowName = Annotated[str, Field(pattern=ROW_NAME, description=IN_WORDS[ROW_NAME])]
Line = Annotated[str, StringConstraints(strip_whitespace=True, pattern=LINE)]
Place = Annotated[str, Field(min_length=1, pattern=LINE)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Precision = Literal["fp32", "tf32", "bf16"]
Loss = Literal["softmax", "seesaw"]
Predictor = Literal["linear", "normalised"]


MOST_POINTS = 12
"""Points of a training at which weights are kept: some 0.2 to 0.4 GB each for LVIS."""


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are never coerced, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Draw(Section):
    """The embedded dataset, drawn by ``lvis_rcnn.draw``."""

    seed: Seed
    """Seed of the drawing; the same seed gives the same bytes on every machine."""
    train_images: Count
    """Number of training images."""
    val_images: Count
    """Number of validation images."""


class Split(Section):
    """One split of an existing LVIS-format dataset."""

    annotations: Place
    """Path of the LVIS-format JSON file (v0.5, v1 or your own)."""
    images: Place
    """Folder of the images; a name is looked up by the last two parts of ``coco_url``, the last one, ``file_name``."""
    exhaustive: bool = False
    """The file is plain COCO, with every category annotated in every image: categories without annotations in an image
    are absent from it, and r, c, f follow from the images of the training split."""


class Dataset(Section):
    """What is trained on and scored: ``draw``, or ``train`` and ``val``; only ``splits`` where nothing is trained."""

    name: Name
    """Short name, printed in titles and file names."""
    draw: Draw | None = None
    """Draw the embedded dataset."""
    train: Split | None = None
    """Training split."""
    val: Split | None = None
    """Validation split, scored."""
    splits: dict[Name, Split] = Field(default_factory=dict)
    """Further validation splits by name (not train or val); a published row names the one that it is scored on."""

    @model_validator(mode="after")
    def one_source(self) -> Self:
        """Either drawn or named, never both, never half."""
        sources = (self.draw is not None, self.train is not None, self.val is not None)
        if sources not in {(True, False, False), (False, True, True)} and not (self.splits and not any(sources)):
            raise ValueError("either 'draw', or both 'train' and 'val', or only 'splits' where nothing is trained")
        if {"train", "val"} & set(self.splits):
            raise ValueError("names of 'splits' other than train and val")
        if self.train and self.val and self.train.exhaustive != self.val.exhaustive:
            raise ValueError("exhaustive for both train and val, whose categories are the same, or for neither")
        return self

    @property
    def is_trained_on(self) -> bool:
        """Whether there is a training split."""
        return self.draw is not None or self.train is not None

    def named(self, split: str) -> Split | None:
        """The split of that name; None where it is drawn."""
        return {"train": self.train, "val": self.val, **self.splits}[split]

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """Names of the splits that a row can be scored on."""
        return (*(["val"] if self.is_trained_on else []), *self.splits)


class Sampling(Section):
    """Class-balanced oversampling (Gupta et al. 2019, arXiv 1908.03195v2, appendix B.2)."""

    oversample_threshold: Annotated[float, Field(gt=0, le=1)] | None
    """Categories in fewer than this fraction of the images are oversampled; null turns oversampling off."""
    frequency: Literal["image", "instance_aware"] = "image"
    """What is compared with the threshold: image, the fraction of images with the category; instance_aware (IRFS,
    arXiv 2305.08069), its geometric mean with the category's fraction of all objects."""
    rounding: Literal["ceil", "stochastic"] = "ceil"
    """Copies of an image from its real-valued factor: ceil (MMDetection) or stochastic (paper, detectron2)."""
    exponent: Annotated[float, Field(gt=0, le=MOST_EXPONENT)] = 0.5
    """Exponent of threshold / frequency; 0.5 is the paper's square root, 1 is linear."""


class Augmentation(Section):
    """What happens to a training image."""

    short_edges_px: tuple[Count, ...] = Field(min_length=1)
    """Each image is rescaled to one of these, drawn at random."""
    long_edge_px: Count
    """Neither edge becomes longer than this."""
    flip_probability: Fraction
    """Probability of a horizontal flip."""
    skip_broken_images: bool = False
    """Replace an image that cannot be read by another one instead of stopping; each is named and counted."""


class Seesaw(Section):
    """Seesaw loss (Wang et al. 2021, arXiv 2008.10032)."""

    mitigation: float = Field(default=0.8, ge=0)
    """Exponent p of the ratio of how often two classes were seen; 0 turns mitigation off."""
    compensation: float = Field(default=2.0, ge=0)
    """Exponent q of the ratio of two classes' scores; 0 turns compensation off."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.01
    """The score of the right class counts as at least this in that ratio."""
    counters: Count = 1
    """1: all normalisation groups of a step share one count of each class, summed after the step. More: group g has
    count number g modulo this; in MMDetection each GPU has its own, 8 in the published runs."""


class Model(Section):
    """Everything about the network but its backbone."""

    weights: Literal["imagenet", "coco", "none"]
    """Initial weights: imagenet, of the backbone; coco, of a published COCO detector without its class layers; none."""
    normalization: Literal["fixed_batch", "batch", "group"]
    """fixed_batch: ImageNet statistics, affine trained (the recipe); batch, group: from scratch."""
    frozen_stages: int = Field(ge=0, le=4)
    """Stages of the backbone that are not trained; 1 is the stem and stage 1."""
    anchor_scale: Positive = 8.0
    """Side of an anchor over the stride of its level."""
    anchors_per_image: Count = 256
    """Anchors sampled for the RPN losses."""
    proposals_before_nms: Count = 2000
    """Proposals kept per level before NMS, in training."""
    proposals_after_nms: Count = 1000
    """Proposals kept per image after NMS, in training."""
    rois_per_image: Count = 512
    """Regions sampled per image for the box and mask losses."""
    roi_positive_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    """At most this fraction of them is positive; each positive region costs one mask."""
    classification: Loss = "softmax"
    """Loss and scores of the box head: softmax, cross entropy over classes and background; seesaw, Seesaw loss over
    the classes, and objectness."""
    seesaw: Seesaw = Seesaw()
    """Its factors; only with classification seesaw."""
    box_classifier: Predictor = "linear"
    """Last layer of the classification: normalised is 20 times the cosine of features and weights, plus a bias."""
    mask_predictor: Predictor = "linear"
    """Last layer of the mask head, in the same two forms."""

    @model_validator(mode="after")
    def seesaw_is_used(self) -> Self:
        """Settings of a loss that is not used would be a mistake."""
        if self.classification != "seesaw" and self.seesaw != Seesaw():
            raise ValueError("model.seesaw only with model.classification seesaw")
        return self

    @model_validator(mode="after")
    def scratch_is_trained(self) -> Self:
        """Random weights must not be frozen, nor their statistics fixed."""
        if self.weights == "none" and (self.frozen_stages or self.normalization == "fixed_batch"):
            raise ValueError("with weights: none, frozen_stages must be 0 and normalization batch or group")
        return self


# Settings in which published models of other methods differ from the recipe, beside sampling.
HEADS = ("classification", "box_classifier", "mask_predictor")


class Schedule(Section):
    """Length of a training, optimizer and learning rate, which is a pure function of the step."""

    images_per_step: Count
    """Images of one optimizer step."""
    normalisation_group: Count = 2
    """Images whose losses share their divisors, in the published runs the 2 images of one GPU; a step averages over its
    groups, on any number of GPUs."""
    epochs: Count | None = None
    """Budget in passes over the oversampled list; give this or ``steps``."""
    steps: Count | None = None
    """Budget in optimizer steps; give this or ``epochs``."""
    optimizer: Literal["sgd", "adamw"]
    """A row of the table of optimizers."""
    learning_rate: Positive
    """Peak learning rate for a step of ``learning_rate_images`` images."""
    learning_rate_images: Count | None = None
    """The rate is multiplied by ``images_per_step`` over this; null leaves it as it is."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    weight_decay: float = Field(ge=0)
    """Weight decay of every trained parameter."""
    policy: Literal["step", "one_cycle"]
    """A row of the table of schedules."""
    warmup_steps: int = Field(ge=0)
    """Steps of linear warm-up."""
    warmup_start_factor: Fraction = 0.001
    """Warm-up begins at this fraction of the learning rate."""
    decay_at_epochs: tuple[Count, ...] = ()
    """policy step: the rate is multiplied by ``decay_factor`` at the start of these 0-based epochs."""
    decay_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """policy step: the factor of each decay."""
    gradient_clip_norm: Positive | None = None
    """The gradient is clipped to this norm; null for no clipping."""

    @model_validator(mode="after")
    def one_budget(self) -> Self:
        """A budget in steps or in epochs; the step policy counts epochs."""
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("exactly one of 'epochs' and 'steps'")
        if self.policy == "step" and self.epochs is None:
            raise ValueError("policy 'step' needs the budget in 'epochs'")
        return self

    @model_validator(mode="after")
    def whole_groups(self) -> Self:
        """A step consists of whole normalisation groups."""
        if self.images_per_step % self.normalisation_group:
            raise ValueError("images_per_step must be a multiple of normalisation_group")
        return self


class Calibration(Section):
    """Scores corrected after training for how often training shows each category, and where in its images."""

    method: Literal["norcal", "fracal"]
    """norcal (Pan et al. 2021, arXiv 2107.02170) or fracal (Alexandridis et al. 2025, arXiv 2410.11774)."""
    gamma: Annotated[float, Field(ge=0)] | None = None
    """norcal: exponent of the number of training images. Its authors give no value, so it has no default."""
    dimension_exponent: float = Field(default=2.0, ge=0)
    """fracal: exponent of the fractal dimension, the paper's lambda."""
    base: float = Field(default=10.0, gt=1)
    """fracal: base of the logarithm of the frequency."""
    frequency: Literal["images", "instances"] = "images"
    """fracal: whether a category's share of the training images is its frequency, or its share of all objects."""

    @model_validator(mode="after")
    def keys_of_its_method(self) -> Self:
        """NorCal needs gamma; no key of the other method is given."""
        is_norcal = self.method == "norcal"
        if is_norcal and self.gamma is None:
            raise ValueError("norcal with gamma, for which there is no default: above 0 rare categories score higher")
        others = {"dimension_exponent", "base", "frequency"} if is_norcal else {"gamma"}
        if wrong := sorted(others & self.model_dump(exclude_defaults=True).keys()):
            raise ValueError(f"{self.method} without {wrong[0]}, which is not its own")
        return self


class Inference(Section):
    """The test pipeline."""

    short_edge_px: Count
    """Images are rescaled to this short edge ..."""
    long_edge_px: Count
    """... unless the long edge would exceed this."""
    proposals_before_nms: Count = 1000
    """Proposals kept per level before NMS."""
    proposals_after_nms: Count = 1000
    """Proposals kept per image after NMS."""
    score_threshold: Fraction
    """Detections with a lower score are dropped."""
    nms_iou: Fraction = 0.5
    """IoU above which the lower-scored of two detections of a category is dropped."""
    nms: Literal["exact", "offset"] = "exact"
    """exact compares boxes as they are; offset, for parity only, shifts each category's boxes apart in float32 as mmcv
    does, which rounds them by up to 1/8 px."""
    detections_per_image: int = Field(ge=1, le=10_000)
    """Detections kept per image over all categories; AP counts at most 300, AP-fixed all."""
    masks: Literal["all", "scored"] = "all"
    """scored makes only the masks that the protocol reads, those of categories verified as present in or absent from
    the image; AP is the same, and the measured speed is that of all masks."""
    batch_size: Count = 1
    """Images that pass through the network together, padded to one size; numbers are equal up to rounding."""
    precision: Precision = "fp32"
    """Of inference: fp32 (without TF32), as published; tf32 and bf16 as in ``compute``."""
    calibration: Calibration | None = None
    """How scores are corrected after training; null leaves them as the network gives them."""


class Evaluation(Section):
    """Scoring by the LVIS protocol."""

    detections_per_image: int = Field(default=300, ge=1, le=300)
    """Detections per image that are scored."""
    bootstrap_resamples: int = Field(default=1000, ge=0, le=MOST_RESAMPLES)
    """Bootstrap resamples of the images for the 95 % intervals of all metrics, 200 to 100,000; 0 for no intervals."""
    protocols: tuple[str, ...] = ()
    """What is scored beside AP@300, each a group of columns: fixed, boundary, boundary_fixed, minival, minival_fixed,
    minival_boundary, minival_boundary_fixed, and those of ``subsets``."""
    subsets: tuple[str, ...] = ()
    """Text files with one image id a line: street.txt adds the protocols street, street_fixed, street_boundary, ..."""
    score_at_epochs: tuple[Count, ...] = ()
    """Weights after so many epochs are kept and scored, also while the training goes on; for a budget in epochs."""
    score_at_steps: tuple[Count, ...] = ()
    """The same after so many optimizer steps; both together at most 12. Neither changes what is trained."""
    score_images: Count | None = None
    """Validation images that these weights are scored on, evenly spread over the split; null for all."""

    @property
    def scores_on_the_way(self) -> bool:
        """Whether weights are kept and scored before a training ends."""
        return bool(self.score_at_epochs or self.score_at_steps)

    @model_validator(mode="after")
    def few_points(self) -> Self:
        """Each point is named once, and their number bounds the disk that the weights take."""
        points = (*self.score_at_epochs, *self.score_at_steps)
        repeated = any(len(set(one)) < len(one) for one in (self.score_at_epochs, self.score_at_steps))
        if repeated or len(points) > MOST_POINTS:
            raise ValueError(f"at most {MOST_POINTS} points in score_at_epochs and score_at_steps, none of them twice")
        if self.score_images is not None and not points:
            raise ValueError("score_images only with score_at_epochs or score_at_steps, whose weights they are for")
        return self

    @property
    def subset_names(self) -> tuple[str, ...]:
        """The name of each of ``subsets``."""
        return tuple(Path(file).stem for file in self.subsets)

    @property
    def asked_protocols(self) -> tuple[Protocol, ...]:
        """The protocols that are scored beside AP@300."""
        known = protocols_by_name(self.subset_names)
        return tuple(known[name] for name in self.protocols)

    @model_validator(mode="after")
    def known_protocols(self) -> Self:
        """Each protocol is known and named once, and so is each subset."""
        known = protocols_by_name(self.subset_names)
        if unknown := [name for name in self.protocols if name not in known]:
            raise ValueError(f"protocols among {', '.join(known)}, not {unknown[0]}")
        if len(set(self.protocols)) < len(self.protocols):
            raise ValueError("protocols must not repeat an entry")
        unused = [name for name in self.subset_names if all(one.subset != name for one in self.asked_protocols)]
        if unused:
            raise ValueError(f"subsets that a protocol is of, not {unused[0]}: name it in protocols")
        return self


class Measure(Section):
    """The short measurement of memory and speed."""

    training_steps: Count = 3
    """Steps whose memory is measured; from the second step on the optimizer's state is complete."""
    images: Count = 2000
    """Images whose inference is timed; all where there are fewer."""


class Variant(Section):
    """A row that is trained with settings of its own: keys here replace those of the study's section, key by key."""

    backbone: BackboneName
    """Its backbone."""
    title: Line | None = None
    """What the table calls it; null is its name."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Keys of ``sampling`` that differ."""
    augmentation: dict[str, Any] = Field(default_factory=dict)
    """Keys of ``augmentation`` that differ."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Keys of ``model`` that differ."""
    schedule: dict[str, Any] = Field(default_factory=dict)
    """Keys of ``schedule`` that differ."""
    inference: dict[str, Any] = Field(default_factory=dict)
    """Keys of ``inference`` that differ; rows that differ in nothing else share one training."""

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        """What differs from the study, by section; sections without a difference are left out."""
        return {section: changed for section, changed in self if isinstance(changed, dict) and changed}


class Published(Section):
    """A published checkpoint that is scored here without training."""

    model: Name
    """Its name in the zoo."""
    split: Name = "val"
    """The validation split: the dataset's own, ``val``, or one of ``dataset.splits``."""


class Report(Section):
    """How the table is written, and which study its rows are compared with."""

    base_url: Line | None = None
    """Prefix of the links of model and log; null links to the files beside the table."""
    compare_with: Name | None = None
    """Name of another study, scored in results/<name>, which rows are compared with; null for none."""
    baseline: RowName | None = None
    """Name of the row that the table compares the other trained rows with; null for none."""

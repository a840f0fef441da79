"""What each section of a study file may say: names, types, ranges, defaults. config.py puts them together."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


@dataclass(frozen=True)
class Backbone:
    """One row: how the network is built and what the table calls it."""

    title: str
    """Row name on the page."""
    file_stem: str
    """Part of the published file name, as MMDetection spells it."""
    blocks: tuple[int, int, int, int]
    """Bottlenecks of stages 1 to 4."""
    groups: int
    """Groups of each 3x3 convolution."""
    width_per_group: int
    """Channels of one group in stage 1; 64 with one group is the plain ResNet."""
    style: str = "pytorch"

    @property
    def has_imagenet_weights(self) -> bool:
        """Whether torchvision has the recipe's weights: it has no 32x4d network, and its 64x4d is another training."""
        return self.groups == 1


# In the order of their cost: trainings begin with the last.
BACKBONES = {
    "r50": Backbone("R-50-FPN", "r50_fpn", (3, 4, 6, 3), groups=1, width_per_group=64),
    "r101": Backbone("R-101-FPN", "r101_fpn", (3, 4, 23, 3), groups=1, width_per_group=64),
    "x101_32x4d": Backbone("X-101-32x4d-FPN", "x101_32x4d_fpn", (3, 4, 23, 3), groups=32, width_per_group=4),
    "x101_64x4d": Backbone("X-101-64x4d-FPN", "x101_64x4d_fpn", (3, 4, 23, 3), groups=64, width_per_group=4),
}


BackboneName = Literal["r50", "r101", "x101_32x4d", "x101_64x4d"]
assert set(BackboneName.__args__) == set(BACKBONES)  # type: ignore[attr-defined]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.]*$", description="lower-case letters, digits, '_' and '.'")]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are never coerced, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Draw(Section):
    """The embedded dataset, drawn by ``lvis_rcnn.draw``."""

    seed: int = Field(ge=0)
    """Seed of the drawing; the same seed gives the same bytes on every machine."""
    train_images: Count
    """Number of training images."""
    val_images: Count
    """Number of validation images."""


class Split(Section):
    """One split of an existing LVIS-format dataset."""

    annotations: str
    """Path of the LVIS-format JSON file (v0.5, v1 or your own)."""
    images: str
    """Folder of the images; a name is looked up by the last two parts of ``coco_url``, the last one, ``file_name``."""


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
        return self

    @property
    def is_trained_on(self) -> bool:
        """Whether there is a training split."""
        return self.draw is not None or self.train is not None

    def named(self, split: str) -> Split | None:
        """The split of that name where it is one of files; None where it is drawn."""
        return {"train": self.train, "val": self.val, **self.splits}[split]

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """Names of the splits that a row can be scored on."""
        return (*(["val"] if self.is_trained_on else []), *self.splits)


class Sampling(Section):
    """Class-balanced oversampling (Gupta et al. 2019, arXiv 1908.03195v2, appendix B.2)."""

    oversample_threshold: Annotated[float, Field(gt=0, le=1)] | None
    """Categories in fewer than this fraction of the images are oversampled; null turns oversampling off."""
    rounding: Literal["ceil", "stochastic"] = "ceil"
    """Copies of an image from its real-valued factor: ceil is MMDetection's, stochastic the paper's, detectron2's."""
    exponent: Positive = 0.5
    """Of threshold over frequency; one half is the paper's square root."""


class Augmentation(Section):
    """What happens to a training image."""

    short_edges_px: tuple[Count, ...] = Field(min_length=1)
    """One of these is drawn for each image."""
    long_edge_px: Count
    """Neither edge becomes longer than this."""
    flip_probability: Fraction
    """Probability of a horizontal flip."""
    skip_broken_images: bool = False
    """Train on another image in place of one that cannot be read, instead of stopping; each is named and counted."""


class Model(Section):
    """Everything about the network but its backbone."""

    weights: Literal["imagenet", "coco", "none"]
    """Initial weights: of the backbone, of a published COCO detector but for its class layers, or none."""
    normalization: Literal["fixed_batch", "batch", "group"]
    """fixed_batch: ImageNet statistics, affine trained (the recipe); batch, group: from scratch."""
    frozen_stages: int = Field(ge=0, le=4)
    """Stages of the backbone that are not trained; 1 is the stem and stage 1."""
    anchor_scale: Positive = 8.0
    """Anchor side in units of the level's stride."""
    anchors_per_image: Count = 256
    """Anchors sampled for the RPN losses."""
    proposals_before_nms: Count = 2000
    """Proposals kept a level before NMS, in training."""
    proposals_after_nms: Count = 1000
    """Proposals kept an image after NMS, in training."""
    rois_per_image: Count = 512
    """Regions sampled for the box and mask losses."""
    roi_positive_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    """At most this fraction of them is positive; each positive costs one mask."""

    @model_validator(mode="after")
    def scratch_is_trained(self) -> Self:
        """Random weights must not be frozen, nor their statistics fixed."""
        if self.weights == "none" and (self.frozen_stages or self.normalization == "fixed_batch"):
            raise ValueError("with weights: none, frozen_stages must be 0 and normalization batch or group")
        return self


class Schedule(Section):
    """Optimizer steps until the recipe says stop. The learning rate is a pure function of the step."""

    images_per_step: Count
    """Images of one optimizer step."""
    normalisation_group: Count = 2
    """Images that share the divisors of their losses, as the 2 of one GPU do in the published runs; a step averages its
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
    """The rate grows linearly with ``images_per_step`` over this; null takes it as it is."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    weight_decay: float = Field(ge=0)
    """Decay of every trained parameter."""
    policy: Literal["step", "one_cycle"]
    """A row of the table of schedules."""
    warmup_steps: int = Field(ge=0)
    """Steps of linear warm-up."""
    warmup_start_factor: Fraction = 0.001
    """Warm-up begins at this fraction of the learning rate."""
    decay_at_epochs: tuple[Count, ...] = ()
    """policy step: the rate is multiplied by ``decay_factor`` at the start of these 0-based epochs."""
    decay_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """policy step: see above."""
    gradient_clip_norm: Positive | None = None
    """Largest norm of the whole gradient; null for none."""

    @model_validator(mode="after")
    def one_budget(self) -> Self:
        """Steps or epochs; the step policy speaks of epochs."""
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


class Compute(Section):
    """What the numbers depend on besides the recipe: a different thread count gives different rounding."""

    device: Literal["cpu", "cuda"]
    """Device of training and inference."""
    threads: Count
    """Threads of torch on the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of training: fp32 (without TF32) is the published rows'; bf16 is torch.autocast, losses and weights in fp32."""
    channels_last: bool = False
    """Memory layout of training, which GPUs prefer with bf16; numbers are equal to rounding."""


class Ask(Section):
    """What the trainings of one backbone ask of the machine otherwise than the others; null asks what they do."""

    gpus: Count | None = None
    """GPUs of a node."""
    nodes: Count | None = None
    """Nodes."""
    gpu_model: str | None = None
    """Model of GPU."""
    cpus_per_gpu: Count | None = None
    """CPU cores for each GPU."""
    memory_mb: Count | None = None
    """Memory for each GPU."""
    runtime_minutes: Count | None = None
    """Time limit."""


class Resources(Section):
    """What a job asks of the machine; nothing here changes a number."""

    loader_workers: int = Field(ge=0)
    """Processes that read images; 0 reads in the training process."""
    memory_mb: Count
    """Memory of a training or inference job, for each of its GPUs."""
    runtime_minutes: Count
    """Time limit of a training job on a cluster."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs of a training on each of its nodes, a process each; null is 1 where compute.device is cuda, else 0."""
    nodes: Count = 1
    """Nodes of a training."""
    gpu_model: str | None = None
    """Model of GPU as the cluster calls it; null takes any."""
    cpus_per_gpu: Count | None = None
    """CPU cores for each GPU; null is compute.threads."""
    of_backbone: dict[BackboneName, Ask] = Field(default_factory=dict)
    """What the trainings of a backbone ask otherwise."""
    log_every_steps: Count = 50
    """Steps between two lines of the training log."""
    weights_dir: str = "data/weights"
    """Folder of published weights, under their published file names; what is not there is fetched into it."""


class Inference(Section):
    """The test pipeline."""

    short_edge_px: Count
    """Images are rescaled to this short edge ..."""
    long_edge_px: Count
    """... unless the long edge would exceed this."""
    proposals_before_nms: Count = 1000
    """Proposals kept a level before NMS."""
    proposals_after_nms: Count = 1000
    """Proposals kept an image after NMS."""
    score_threshold: Fraction
    """Detections with a lower score are dropped."""
    nms_iou: Fraction = 0.5
    """Overlap above which the lower-scored detection of a category is dropped."""
    nms: Literal["exact", "offset"] = "exact"
    """exact compares boxes as they are; offset shifts each category's boxes apart in float32, as mmcv does, which
    rounds them by up to 1/8 px: for parity only."""
    detections_per_image: int = Field(ge=1, le=300)
    """Detections kept an image over all categories; the protocol reads at most 300."""
    masks: Literal["all", "scored"] = "all"
    """scored makes only masks that the protocol reads, those of categories known to be in an image or not; AP is the
    same."""
    batch_size: Count = 1
    """Images that pass through the network together, all of one padded size; numbers are equal to rounding."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of inference: fp32 (without TF32) is the published rows'; bf16 is torch.autocast."""


class Evaluation(Section):
    """Scoring by the LVIS protocol."""

    detections_per_image: int = Field(default=300, ge=1, le=300)
    """Detections an image that are scored."""
    bootstrap_resamples: int = Field(default=1000, ge=0)
    """Resamples of the images for the intervals of all metrics; 0 for no intervals."""


class Measure(Section):
    """The short measurement of memory and speed."""

    training_steps: Count = 3
    """Steps whose memory is measured; from the second on the optimizer holds all it ever holds."""
    images: Count = 2000
    """Images whose inference is timed, or as many as there are."""


class Published(Section):
    """A published checkpoint that is scored here without training."""

    model: Name
    """Its name in the zoo."""
    split: Name = "val"
    """The validation split: the dataset's own, ``val``, or one of ``dataset.splits``."""


class Report(Section):
    """How the table is written, and what its rows are compared with."""

    base_url: str | None = None
    """Prefix of the links of model and log; null links to the files beside the table."""
    compare_with: Name | None = None
    """Name of another study, scored in results/<name>, which rows are compared with; null for none."""

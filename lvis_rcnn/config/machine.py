"""The sections of a study that say where it runs: device and precision, and what jobs ask of a machine."""

from typing import Literal

from pydantic import Field

from lvis_rcnn.config.schema import BackboneName, Count, Place, Positive, Precision, Section


class Compute(Section):
    """What the numbers depend on besides the recipe: a different thread count gives different rounding."""

    device: Literal["cpu", "cuda"]
    """Device of training and inference."""
    threads: Count
    """Threads of torch on the CPU."""
    precision: Precision = "fp32"
    """Of training: fp32 (without TF32), as published; tf32, which only GPUs know, rounds what convolutions and matrix
    products multiply to 10 bits; bf16 is torch.autocast, with losses and weights in fp32."""
    channels_last: bool = False
    """Memory layout of training that GPUs prefer with bf16; numbers are equal up to rounding."""
    groups_at_once: Count | None = None
    """Normalisation groups that a training step takes in one pass; numbers are equal up to rounding.

    null: on a GPU as many as its memory holds, on a CPU one.
    """
    common_canvas: bool = False
    """Whether the groups of a pass share one canvas where their images are of one orientation.

    It is faster on a GPU, but changes what the network sees at the border of an image.
    """


class Ask(Section):
    """What the trainings of one backbone ask of the machine where they differ; null asks what the others do."""

    gpus: Count | None = None
    """GPUs of each node, with a process each."""
    nodes: Count | None = None
    """Nodes."""
    gpu_model: str | None = None
    """Model of GPU as the cluster calls it; any where neither this nor the others' is given."""
    cpus_per_gpu: Count | None = None
    """CPU cores for each GPU; compute.threads where neither this nor the others' is given."""
    memory_mb: Count | None = None
    """Memory for each GPU."""
    runtime_minutes: Count | None = None
    """Time limit."""


class Resources(Ask):
    """What a job asks of the machine; nothing here changes a number."""

    loader_workers: int = Field(ge=0)
    """Processes that read images; 0 reads in the training process."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs of a training on each of its nodes, with a process each; null is 1 where compute.device is cuda, else 0."""
    nodes: Count = 1
    """Nodes of a training."""
    memory_mb: Count
    """Memory of a training or inference job, for each of its GPUs."""
    runtime_minutes: Count
    """Time limit of a training job on a cluster."""
    of_backbone: dict[BackboneName, Ask] = Field(default_factory=dict)
    """What the trainings of a backbone ask where they differ."""
    decode_images: bool | None = None
    """Whether preflight decodes every image, which finds damage inside of them; null does up to 5,000 images."""
    log_every_steps: Count = 50
    """Steps between two lines of the training log."""
    checkpoint_seconds: Positive = 75.0
    """Seconds between two checkpoints; at most so much, and the time of a save, is done again after a kill, and nothing
    after SIGTERM, which saves at once."""
    weights_dir: Place = "data/weights"
    """Folder of published weights, under their published file names; missing files are fetched into it."""

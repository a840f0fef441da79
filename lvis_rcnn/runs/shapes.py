"""What each record of a run must hold to be read, and of which types; other keys are free.

These are the keys that table, status and clean read. Records of earlier versions lack some, which are not required. A
record that lacks a required one, or holds another type, counts as damaged (:func:`records.read_json_object`).
"""

from typing import Annotated, Literal, NotRequired, Required, TypedDict

from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
AboveZero = Annotated[float, Meta(gt=0)]


class Made(TypedDict, total=False):
    """What a step recorded of how it ran."""

    settings_digest: str
    model_sha256: str
    annotations_sha256: str
    code_version: str
    versions: dict[str, str]
    threads: int
    precision: str


class Cost(TypedDict, total=False):
    """What all starts of a training cost."""

    gpu_hours: float
    cpu_hours: float


class Trained(Made, total=False):
    """train.json."""

    format: Literal["lvis_rcnn.run"]
    version: Literal[1]
    passes: str
    memory_gb: Required[float]
    model_file: Required[str]
    log_file: Required[str]
    run_digest: str
    device: str
    steps: Positive
    attempts: int
    ranks: int
    images_seen: int
    cost: Cost
    finished_at: str


class Imported(TypedDict):
    """import.json."""

    format: NotRequired[Literal["lvis_rcnn.import"]]
    version: NotRequired[Literal[1]]
    file: str
    sha256: str
    model_sha256: str


class Inference(Made, total=False):
    """inference.json."""

    format: Literal["lvis_rcnn.inference"]
    version: Literal[1, 2]
    detections: Required[int]
    device: str


class Point(TypedDict):
    """Scores of weights that a training kept: points/step<n>.json, and an entry of ap_so_far.json."""

    step: Positive
    epoch: float
    model_sha256: str
    settings_digest: str
    annotations_sha256: str
    detections_per_image: int
    images: Positive
    images_of_split: Positive
    scored_at: float
    bbox: NotRequired[dict[str, float | None]]
    segm: NotRequired[dict[str, float | None]]


class SoFar(TypedDict):
    """ap_so_far.json."""

    format: NotRequired[Literal["lvis_rcnn.ap_so_far"]]
    version: NotRequired[Literal[1]]
    state: str
    points: list[Point]


class Seconds(TypedDict):
    """How long an image took, over the images."""

    first_quartile: AboveZero
    median: AboveZero
    third_quartile: AboveZero


class Speed(TypedDict):
    """The part of measure.json about inference."""

    fps: AboveZero
    definition: str
    images: int
    warmup_images: int
    resolution: str
    precision: str
    masks: NotRequired[str]
    clock: NotRequired[Literal["CPU time", "wall time"]]
    image_s: NotRequired[Seconds]
    cpu_per_wall: NotRequired[float]
    cores: NotRequired[Positive]
    other_cores: NotRequired[float | None]


class Memory(TypedDict):
    """The part of measure.json about training."""

    memory_gb: float
    definition: str
    images: int
    steps: int
    resolution: str
    precision: str


class Measured(Made, total=False):
    """measure.json."""

    format: Literal["lvis_rcnn.measure"]
    version: Literal[1]
    device: Required[str]
    inference: Required[Speed]
    training: Memory | None


class Heartbeat(TypedDict, total=False):
    """progress.json."""

    step: Natural
    steps: Positive
    saved_step: Natural
    attempt: int
    ranks: Positive
    host: str
    pid: int
    state: str
    images_per_s: float | None
    eta_s: float | None
    loss: float | None
    peak_memory_bytes: Natural


class LogLine(TypedDict):
    """A line of log.json."""

    step: Natural
    time: NotRequired[float]


class WrittenLine(LogLine):
    """The same, as a training that goes on needs it; the other keys hold numbers, too."""

    loss: float
    data_time: float
    written_at: float


class InferenceStart(TypedDict, total=False):
    """start.json of an inference."""

    settings_digest: str
    model_sha256: str
    host: str
    pid: int
    images: int
    saved: int


class Clock(TypedDict):
    """What lies beside a shard of detections."""

    images: Natural
    whole_s: AboveZero


class Part(TypedDict):
    """What lies beside a part of a shard."""

    positions: list[Natural]
    whole_s: float


class Steps(TypedDict):
    """Of the schedule among the facts of preflight.json."""

    steps: Positive


class Facts(TypedDict, total=False):
    """The facts of preflight.json that table and status show."""

    val_images_seen_by_initial_weights: int
    schedule: Steps


class Preflight(TypedDict):
    """preflight.json."""

    facts: Facts


class RepeatFactors(TypedDict, total=False):
    """summary.json of the repeat factors."""

    threshold: float | None
    frequency: str
    expected_epoch_length: float
    images_kept: int


class Store(TypedDict, total=False):
    """store.json of the annotations."""

    annotations_sha256: str

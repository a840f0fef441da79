"""What metrics.json must hold to be read; other keys are free. Table, plots and ``compare`` check a file by it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict

from msgspec import Meta

from lvis_rcnn.evaluation.average_precision import METRIC_NAMES, RECALLS
from lvis_rcnn.evaluation.results import Kind

Fraction = Annotated[float, Meta(ge=0, le=1 + 1e-9)]  # a mean of ones may be rounded up
Line = Annotated[list[Fraction], Meta(min_length=len(RECALLS), max_length=len(RECALLS))]
# Mean precision at each recall by IoU thresholds; None where there is no object.
Curve = TypedDict("Curve", {"0.5": Line | None, "0.75": Line | None, "0.5:0.95": Line | None})
# Every metric; None where it is undefined.
Metrics = TypedDict("Metrics", dict.fromkeys(METRIC_NAMES, Fraction | None))  # type: ignore[misc]


class Intervals(TypedDict):
    """95 % intervals of the metrics of a kind by their names; None or absent where there is none."""

    resamples: int
    bbox: NotRequired[dict[str, tuple[float, float] | None]]
    segm: NotRequired[dict[str, tuple[float, float] | None]]


class Category(TypedDict):
    """AP of a category; None where it has no object."""

    id: int
    name: str | None
    frequency: Literal["r", "c", "f"]
    objects: NotRequired[int]
    bbox: NotRequired[Fraction | None]
    segm: NotRequired[Fraction | None]


class Curves(TypedDict):
    """Curves of all categories and of each frequency group."""

    recall: Line
    all: Curve
    r: Curve
    c: Curve
    f: Curve


class ProtocolMetrics(TypedDict, total=False):
    """The metrics by a further protocol; names have no @300 where the detections of an image are not limited."""

    title: Required[str]
    protocol: Required[str]
    images: int
    bbox: dict[str, Fraction | None]
    segm: dict[str, Fraction | None]
    intervals: Intervals
    per_category: Required[list[Category]]


class ScoredRun(TypedDict, total=False):
    """What a scored run may have."""

    format: Literal["lvis_rcnn.metrics"]
    version: Literal[1]
    intervals: Intervals
    curves: dict[Kind, Curves]
    protocol: str
    images: int
    detections_per_image: int
    protocols: dict[str, ProtocolMetrics]


class TableMetrics(ScoredRun, total=False):
    """What the table needs of it: both kinds."""

    bbox: Required[Metrics]
    segm: Required[Metrics]
    per_category: list[Category]
    annotations_sha256: str
    detections_sha256: str


class ComparedMetrics(ScoredRun, total=False):
    """What ``compare`` needs of it: either kind, and what says that matches.npz is of the same run."""

    bbox: Metrics
    segm: Metrics
    per_category: Required[list[Category]]
    annotations_sha256: Required[str]
    detections_sha256: Required[str]


def of_protocol(metrics: Mapping[str, Any], protocol: str) -> Mapping[str, Any]:
    """What a metrics.json says of a further protocol, in the form in which it says it of AP@300, the empty name.

    Raises:
        KeyError: it was not scored by that protocol.
    """
    if not protocol:
        return metrics
    names = ("annotations_sha256", "detections_sha256", "detections_per_image")
    return {**metrics["protocols"][protocol], **{name: metrics[name] for name in names if name in metrics}}

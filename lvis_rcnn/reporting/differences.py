"""Which rows of a table differ: paired tests of every two rows that are scored on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from lvis_rcnn.evaluation.compare import PRIMARY
from lvis_rcnn.evaluation.results import KINDS, Kind
from lvis_rcnn.evaluation.uncertainty import FEWEST_SEEDS, LEVEL, Estimate, Interval, estimates, holm, seedwise
from lvis_rcnn.reporting.rows import PUBLISHED, RESCORED, Row

# The measure of each primary metric.
TESTED = {f"{KINDS[kind]}_{metric}": (kind, metric) for kind, metric in PRIMARY}


@dataclass(frozen=True)
class PairTest:
    """Whether two rows differ in a measure."""

    name: str
    better: Row
    worse: Row
    points: float
    """How much the better one exceeds the other, in percent."""
    interval: Interval
    """95 % interval of it, in percent."""
    p: float
    """Corrected for the number of tests of the table (Holm)."""
    family: int
    """That number; tests of rows that are not scored yet count, so that what is shown stays shown."""

    @property
    def is_shown(self) -> bool:
        """Whether the corrected p is below 0.05."""
        return self.p < 1 - LEVEL


def paired_tests(rows: Sequence[Row]) -> list[PairTest]:
    """The tests of every two rows in every measure of ``TESTED``; none where resamples are lacking.

    Where the study names a baseline, each other row is tested against it alone, which are fewer tests.
    """
    found: dict[tuple[int, int, str], Estimate] = {}
    pending = 0
    has_baseline = any(row.is_baseline for row in rows)
    for one, other in combinations([at for at, row in enumerate(rows) if row.source != PUBLISHED], 2):
        pair = (rows[one], rows[other])
        # A published model, without a name, is no line of the table of methods.
        if has_baseline and not (any(row.is_baseline for row in pair) and all(row.name for row in pair)):
            continue
        if len({row.scored_annotations() for row in pair if row.scored_seeds}) > 1:
            continue
        will_be = pair[0].scored_on == pair[1].scored_on and not all(row.is_scored for row in pair)
        for name, (kind, metric) in TESTED.items():
            if estimate := difference_of(*pair, kind).get(metric):
                found[one, other, name] = estimate
            else:
                pending += will_be
    corrected = holm({key: estimate.p for key, estimate in found.items()}, pending)
    tests = []
    for (one, other, name), estimate in found.items():
        sign, pair = (1, (rows[one], rows[other])) if estimate.value > 0 else (-1, (rows[other], rows[one]))
        low, high = sorted(100 * sign * bound for bound in estimate.interval)
        p, family = corrected[one, other, name], len(found) + pending
        tests.append(PairTest(name, *pair, 100 * sign * estimate.value, (low, high), p, family))
    return tests


def difference_of(row: Row, minus: Row, kind: Kind, protocol: str = "") -> dict[str, Estimate | None]:
    """How much a row exceeds another in each metric; empty where one has no resamples.

    Rows that use the same trainings are compared seed by seed: what varies between seeds is common to both.
    """
    both = [one.sampled_by.get(protocol, {}) if protocol else one.sampled for one in (row, minus)]
    if not all(kind in sampled for sampled in both):
        return {}
    ours, theirs = (sampled[kind] for sampled in both)
    share = row.trained_as and row.trained_as == minus.trained_as and row.scored_seeds == minus.scored_seeds
    return seedwise(ours, theirs) if share else estimates(ours, theirs)


def is_shown_best(row: Row, rows: Sequence[Row], name: str, tests: Sequence[PairTest]) -> bool:
    """Whether a row is shown to be better than every other one that is scored here on the same data.

    None is where a study names a baseline: its other rows are not tested against each other.
    """
    if any(one.is_baseline for one in rows):
        return False
    others = [one for one in rows if one is not row and one.source != PUBLISHED and one.scored_on == row.scored_on]
    beaten = [test.worse for test in tests if test.is_shown and test.name == name and test.better is row]
    return bool(others) and all(any(one is other for one in beaten) for other in others)


def differences_line(rows: Sequence[Row]) -> str:
    """Which rows differ, in words; empty where fewer than two rows are scored, or no resamples were made.

    Of a study with a baseline the table of methods says it.
    """
    scored = [row for row in rows if row.sampled and row.source != PUBLISHED]
    if len(scored) < 2 or any(row.is_baseline for row in rows):
        return ""
    if not (tests := paired_tests(rows)):
        few = any(1 < len(one.metrics) < FEWEST_SEEDS for row in scored for one in row.sampled.values())
        return "Whether rows differ is not tested: two seeds cannot show how much seeds vary." if few else ""
    how = f"paired test over the same images, p < 0.05 after Holm's correction for {tests[0].family} tests"
    shown: dict[str, list[str]] = {}
    for test in sorted((test for test in tests if test.is_shown), key=lambda test: (test.name, -test.points)):
        of_better = shown.setdefault(f"{test.name.replace('_', ' ')}: {row_title(test.better)} over ", [])
        of_better.append(f"{row_title(test.worse)} (+{test.points:.1f})")
    texts = [better + ", ".join(worse) for better, worse in shown.items()]
    text = f"Shown to differ ({how}): {'; '.join(texts)}." if texts else f"No two rows are shown to differ ({how})."
    # Where all are published models, it is about those, as anybody reads it.
    single = any(row.is_single for row in scored) and any(row.source != RESCORED for row in scored)
    return text + (" A row of one run is that trained model alone: other seeds may differ." if single else "")


def row_title(row: Row) -> str:
    """A row's title, with what tells a published model from a row trained here."""
    return f"{row.title} (published)" if row.source == RESCORED else row.title

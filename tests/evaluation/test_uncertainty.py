"""Standard errors, intervals and p values: by hand, beside a plain statistic, on simulated images and seeds."""

import math

import numpy as np
import pytest

from lvis_rcnn.evaluation.average_precision import METRIC_NAMES
from lvis_rcnn.evaluation.uncertainty import (
    FEWEST_RESAMPLES,
    IMAGE_DF,
    Estimate,
    Sampled,
    differs_from_seeds,
    estimates,
    holm,
    intervals,
    seed_variances,
    t_quantile,
    t_tail,
    variances,
    within_0_and_1,
)

M = len(METRIC_NAMES)


def spread(deviation: float, mean: float = 0.0, count: int = 400) -> np.ndarray:
    """Resamples of every metric with this mean and exactly this sample standard deviation."""
    values = np.tile([-1.0, 1.0], count // 2) * math.sqrt((count - 1) / count)
    return np.tile((mean + deviation * values)[:, None], (1, M))


def row(*metrics: float, deviation: float = 0.01) -> Sampled:
    """Runs with these metrics whose resamples move together."""
    values = np.tile(np.array(metrics)[:, None], (1, M))
    return Sampled(values, np.stack([spread(deviation, metric) for metric in metrics]))


def only_ap(*metrics: float) -> Sampled:
    """As :func:`row`, of AP alone: the other twelve would say the same at twelve times the cost."""
    whole = row(*metrics)
    whole.metrics[:, 1:], whole.samples[:, :, 1:] = np.nan, np.nan
    return whole


@pytest.mark.parametrize(
    ("df", "quantile"),
    # Of printed tables: 97.5 %.
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (20, 2.0860), (60, 2.0003), (200, 1.9719)],
)
def test_students_t_is_that_of_the_tables(df, quantile):
    assert t_quantile(0.975, df) == pytest.approx(quantile, abs=6e-5)
    assert t_tail(quantile, df) == pytest.approx(0.025, abs=2e-6)
    assert t_tail(0, df) == pytest.approx(0.5, abs=1e-9)


def test_students_t_with_two_degrees_of_freedom_has_a_closed_form():
    for t in (0.1, 1.0, 3.0, 30.0):
        assert t_tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), abs=1e-12)
        between = t_tail(t, 2), t_tail(t, 2.5), t_tail(t, 3)
        assert between[0] > between[1] > between[2]


def test_a_single_run_has_the_deviation_of_its_resamples():
    found = estimates(row(0.2))["AP"]
    assert (found.value, found.df) == (0.2, pytest.approx(IMAGE_DF))
    assert found.error == pytest.approx(0.01)
    low, high = found.interval
    assert (low, high) == pytest.approx((0.2 - 2.08596 * 0.01, 0.2 + 2.08596 * 0.01), abs=1e-6)
    assert found.p == pytest.approx(2 * t_tail(20, 20))


def test_the_resampled_deviation_of_a_mean_is_its_standard_error():
    """A plain statistic, whose standard error is known: s / sqrt(n), whatever the resampled mean's own mean is."""
    random = np.random.default_rng(0)
    values = random.exponential(1, 50)
    weights = np.array([np.bincount(random.integers(0, 50, 50), minlength=50) for _ in range(4000)])
    samples = np.tile((weights @ values / 50)[:, None], (1, M))
    found = estimates(Sampled(np.full((1, M), values.mean()), samples[None]))["AP"]
    assert found.error == pytest.approx(values.std() / math.sqrt(50), rel=0.04)


def test_an_estimate_lies_in_its_interval_however_biased_resamples_are():
    biased = Sampled(np.full((1, M), 0.2), spread(0.001, 0.3)[None])
    assert all(low < 0.2 < high for low, high in intervals(biased).values())
    near_0 = intervals(Sampled(np.full((1, M), 0.004), spread(0.01)[None]))["AP"]
    assert near_0[0] == 0
    assert near_0[1] == pytest.approx(0.0249, abs=1e-4)
    assert (within_0_and_1((-0.5, 0.25)), within_0_and_1((0.5, 1.5)), within_0_and_1(None)) == (
        (0, 0.25),
        (0.5, 1),
        None,
    )


def test_where_there_is_no_interval():
    few = Sampled(np.full((1, M), 0.2), spread(0.01, 0.2, FEWEST_RESAMPLES - 2)[None])
    equal = Sampled(np.full((1, M), 0.2), np.full((1, 400, M), 0.2))
    undefined = row(0.2)
    undefined.metrics[0, METRIC_NAMES.index("APr")] = np.nan
    undefined.samples[0, FEWEST_RESAMPLES - 1 :, METRIC_NAMES.index("APs")] = np.nan
    undefined.samples[0, FEWEST_RESAMPLES:, METRIC_NAMES.index("APl")] = np.nan
    assert {*intervals(few).values()} == {*intervals(equal).values()} == {*intervals(row(0.2, 0.3)).values()} == {None}
    assert [name for name, bounds in intervals(undefined).items() if bounds is None] == ["APs", "APr"]
    assert {*estimates(row(0.2), row(0.2, 0.3)).values()} == {None}


def test_seeds_add_what_images_do_not_explain():
    # All resamples move together: what differs between seeds is the seeds' own, variance 0.0001.
    seeds = row(0.19, 0.20, 0.21, deviation=0.03)
    between, from_images = seed_variances(seeds)
    assert (between[0], from_images[0]) == (pytest.approx(0.0001), pytest.approx(0, abs=1e-12))
    found = estimates(seeds)["AP"]
    of_images, of_seeds = 0.03**2, 0.0001 / 3
    assert found.value == pytest.approx(0.2)
    assert found.error == pytest.approx(math.sqrt(of_images + of_seeds))
    assert found.df == pytest.approx((of_images + of_seeds) ** 2 / (of_images**2 / 20 + of_seeds**2 / 2))
    # Against a single run, whose own seed nobody can tell.
    one = estimates(seeds, row(0.1, deviation=0.01))["AP"]
    assert one.value == pytest.approx(0.1)
    assert one.error == pytest.approx(math.sqrt(0.02**2 + of_seeds))


def test_each_row_has_its_own_variance_between_seeds():
    three, other, five = row(0.19, 0.20, 0.21), row(0.28, 0.30, 0.32), row(0.3, 0.3, 0.3, 0.3, 0.4)
    # The images move both rows alike, so that the seeds are all there is: variances 0.0001, 0.0004 and 0.002.
    for first, variance, n in ((other, 0.0004, 3), (five, 0.002, 5)):
        found, parts = estimates(first, three)["AP"], (variance / n, 0.0001 / 3)
        assert found.error == pytest.approx(math.sqrt(sum(parts)))
        assert found.df == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / 2))


def test_p_of_equal_rows_of_which_one_varies_more():
    """Rows of three seeds that images move alike; the seeds of the first vary seven times as much."""
    random, sets = np.random.default_rng(0), 500
    few = 0
    for _ in range(sets):
        first, second = ((0.5 + random.normal(0, deviation, 3)).tolist() for deviation in (0.014, 0.002))
        few += estimates(only_ap(*first), only_ap(*second))["AP"].p < 0.05
    # Three standard errors above 5 %; a common variance gives 10 %.
    assert few / sets < 0.08


def test_what_images_add_to_the_variance_between_seeds_is_counted_once():
    # Resamples of three seeds that move apart with variance 0.01 each: so would their metrics, with other images.
    random = np.random.default_rng(0)
    samples = np.tile(random.normal(0.5, 0.1, (3, 20_000, 1)), (1, 1, M))
    between, from_images = seed_variances(Sampled(np.tile([[0.4], [0.5], [0.6]], (1, M)), samples))
    assert (between[0], from_images[0]) == (pytest.approx(0.01), pytest.approx(0.01, abs=3e-4))
    # Seeds that differ less than images explain add nothing but doubt: half of their variance counts in the df.
    found = estimates(Sampled(np.tile([[0.45], [0.5], [0.55]], (1, M)), samples))["AP"]
    of_images = variances(samples.mean(axis=0))[0]
    assert found.error == pytest.approx(math.sqrt(of_images))
    assert found.df == pytest.approx(of_images**2 / (of_images**2 / 20 + (0.0025 / 3 / 2) ** 2 / 2))


@pytest.mark.parametrize("seed_share", [0.0, 1.0])
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_intervals_hold_the_mean_of_simulated_images_and_seeds(seeds, seed_share):
    """A metric that is a mean over 60 images, of which a seed moves each by chance and all by its own effect."""
    random, images, sets, held, halves = np.random.default_rng([seeds, 1]), 60, 300, 0, []
    weights = np.array([np.bincount(random.integers(0, images, images), minlength=images) for _ in range(300)])
    for _ in range(sets):
        of_images = random.normal(0, 1, images)
        effect = random.normal(0, seed_share / math.sqrt(images), (seeds, 1)) if seeds > 1 else np.zeros((1, 1))
        values = 0.5 + of_images + effect + random.normal(0, 0.7, (seeds, images))
        # AP alone: the other twelve would say the same at twelve times the cost.
        metrics, samples = np.full((len(values), M), np.nan), np.full((len(values), len(weights), M), np.nan)
        metrics[:, 0], samples[:, :, 0] = values.mean(axis=1), values @ weights.T / images
        found = estimates(Sampled(metrics, samples))["AP"]
        low, high = found.interval
        held += low <= 0.5 <= high
        halves.append((high - low) / 2)
    # 95 %, give or take three standard errors of 300 sets (0.013).
    assert 0.91 < held / sets < 0.99
    own = seed_share**2 / images if seeds > 1 else 0
    true = math.sqrt(1 / images + (0.49 / images + own) / seeds)
    assert np.mean(halves) < 1.25 * 1.96 * true


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1, "b": 1}
    assert holm({}) == {}
    # What is shown while tests are pending stays shown: no corrected p rises, whatever comes.
    early = holm({"a": 0.01, "c": 0.03}, pending=2)
    assert early == pytest.approx({"a": 0.04, "c": 0.09})
    for further in (0.0, 0.02, 1.0):
        late = holm({"a": 0.01, "c": 0.03, "d": further, "e": 0.5})
        assert all(late[name] <= p + 1e-15 for name, p in early.items())


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_a_further_seed_is_called_different_in_one_of_twenty_cases(seeds):
    random, trials = np.random.default_rng(seeds), 4000
    values = random.normal(0, 1, (trials, seeds + 1))
    drawn = zip(values[:, 0], values[:, 1:].mean(axis=1), values[:, 1:].std(axis=1, ddof=1), strict=True)
    alarms = [differs_from_seeds(*map(float, one), seeds) for one in drawn]
    # Four standard errors.
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.014)
    assert differs_from_seeds(1.0, 0.0, 0.0, seeds)


def test_p_and_interval_agree():
    for value in (0.0, 0.01, 0.0208, 0.0209, 0.05):
        one = Estimate(value, 0.01, 20.0)
        assert (one.p < 0.05) == (one.interval[0] > 0)
    assert Estimate(0.0, 0.01, 20.0).p == pytest.approx(1)

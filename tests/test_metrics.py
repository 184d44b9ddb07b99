import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from recnb import metrics


def cases(draw, ties):
    n, items = draw(st.integers(1, 8)), draw(st.integers(12, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    if ties:
        scores = rng.integers(0, 4, (n, items)).astype(float)
    else:
        scores = np.stack([rng.permutation(items) for _ in range(n)]).astype(float)
    return scores, rng.integers(0, items, n), rng


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_metrics_agree_with_scikit_learn(drawn):
    scores, target, rng = cases(drawn.draw, ties=False)
    truth = np.eye(scores.shape[1])[target]
    ours = metrics.ranks(scores, target)
    labels = np.arange(scores.shape[1])
    hits = sklearn.metrics.top_k_accuracy_score(target, scores, k=3, labels=labels)
    assert ours.hit_rate(3).mean() == pytest.approx(hits)
    assert ours.ndcg(10).mean() == pytest.approx(sklearn.metrics.ndcg_score(truth, scores, k=10))
    single = sklearn.metrics.label_ranking_average_precision_score(truth, scores)
    assert ours.mrr().mean() == pytest.approx(single)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_filtered_metrics_agree_with_scikit_learn(drawn):
    scores, target, rng = cases(drawn.draw, ties=False)
    seen = [rng.choice(scores.shape[1], 5, replace=False) for _ in target]
    barred = scores.copy()
    for row, goal, items in zip(barred, target, seen, strict=True):
        row[items[items != goal]] = -1
    truth = np.eye(scores.shape[1])[target]
    ours = metrics.ranks(scores, target, seen)
    assert ours.ndcg(10).mean() == pytest.approx(sklearn.metrics.ndcg_score(truth, barred, k=10))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tied_ndcg_agrees_with_scikit_learn(drawn):
    scores, target, _ = cases(drawn.draw, ties=True)
    truth = np.eye(scores.shape[1])[target]
    ours = metrics.ranks(scores, target).ndcg(5).mean()
    assert ours == pytest.approx(sklearn.metrics.ndcg_score(truth, scores, k=5))


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_ties_are_the_mean_over_random_orders(drawn):
    scores, target, rng = cases(drawn.draw, ties=True)
    placed = metrics.ranks(scores, target)
    total = np.zeros((2, len(target)))
    for _ in range(800):
        once = metrics.ranks(scores + rng.uniform(0, 0.5, scores.shape), target)
        total += once.hit_rate(5), once.mrr()
    assert np.allclose([placed.hit_rate(5), placed.mrr()], total / 800, atol=0.08)


def test_a_constant_recommender_gets_what_chance_gets():
    placed = metrics.ranks(np.zeros((3, 50)), np.array([0, 20, 49]))
    assert np.allclose(placed.hit_rate(10), 10 / 50)


def test_filtering_removes_seen_items_but_never_the_target():
    scores = np.array([[9.0, 8, 7, 6, 5]])
    target = np.array([3])
    assert metrics.ranks(scores, target).above[0] == 3
    assert metrics.ranks(scores, target, [np.array([0, 1, 1, 3])]).above[0] == 1


def test_nan_scores_are_refused_with_the_case():
    scores = np.zeros((3, 4))
    scores[1, 2] = np.nan
    with pytest.raises(ValueError, match="case 1"):
        metrics.ranks(scores, np.zeros(3, dtype=int))


def test_candidate_ranks_look_at_the_candidates_only():
    scores = np.array([[1.0, 9, 9, 2, 3]])
    placed = metrics.candidate_ranks(scores, np.array([3]), np.array([[0, 3, 4]]))
    assert (placed.above[0], placed.tied[0]) == (1, 0)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        got = metrics.bootstrap(rng.exponential(1.0, 200), draws=300)
        inside += got.low <= 1.0 <= got.high
    assert 0.88 <= inside / 200 <= 0.99


def test_bootstrap_resamples_whole_users():
    values = np.repeat(np.array([0.0, 1.0] * 10), 50)
    alone = metrics.bootstrap(values)
    grouped = metrics.bootstrap(values, groups=np.repeat(np.arange(20), 50))
    assert grouped.high - grouped.low > 4 * (alone.high - alone.low)
    assert grouped.n == 20


def test_sign_flip_test_agrees_with_the_t_test_on_a_clear_case():
    from scipy import stats

    rng = np.random.default_rng(1)
    a, b = rng.normal(0.1, 1, 300), rng.normal(0, 1, 300)
    assert metrics.sign_flip_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.03)
    assert metrics.sign_flip_test(a, a) == 1.0


def test_wilson_gives_the_published_interval_of_43_in_95():
    got = metrics.wilson(43, 95)
    assert (round(got.low, 3), round(got.high, 3)) == (0.356, 0.553)


def test_an_interval_prints_short_but_whole():
    assert str(metrics.Interval(0.114, -0.02, 10.25, 9)) == ".114 [-.020, 10.250]"


def test_the_published_rule_loses_a_right_answer_that_contains_another_title():
    offered = ["M", "The Maltese Falcon", "Fargo"]
    assert metrics.chosen(" the maltese falcon ", offered) == 1
    assert metrics.chosen("The Maltese Falcon", offered, exact=False) == -1  # "m" occurs in it
    assert metrics.chosen("I would watch Fargo", offered, exact=False) == 2
    assert metrics.chosen("I would watch Fargo", offered) == -1
    assert metrics.chosen("Alien", offered) == metrics.chosen("Alien", offered, exact=False) == -1


def test_pairs_are_of_the_seeds_that_both_have():
    rng = np.random.default_rng(0)
    ours, other = rng.random((3, 40)), rng.random((2, 40))
    got, wanted = metrics.paired(ours, other), metrics.paired(ours[:2], other)
    assert (got.value, got.seeds) == (wanted.value, 2)
    assert metrics.paired(ours, other[0]).seeds == 3

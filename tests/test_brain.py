"""Connectomes, models and measures: against independent solvers, closed forms and the figures known of the data."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from recnb import brain
from recnb import brain_measures as measures
from recnb import brain_models as models

LONG = {"volumes": 600, "burn": 400}


@pytest.fixture(scope="module")
def people():
    return brain.load()


@pytest.fixture(scope="module")
def mean_sc(people):
    return people.sc.mean(0)


@pytest.fixture(scope="module")
def distance(people):
    return torch.cdist(people.centre, people.centre)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pooled(bold):
    """Covariance over all runs and times; the mean is 0."""
    rows = bold.double()
    return (rows @ rows.mT).mean((0, 1)) / rows.shape[-1]


def rms(a, b):
    return float((brain.upper(a) - brain.upper(b)).square().mean().sqrt())


@pytest.mark.parametrize(("site", "n", "volumes"), [("hcp", 7, 1200), ("gw", 5, 355)])
def test_a_site_is_read_whole_and_normalised(site, n, volumes):
    people = brain.load(site)
    assert people.sc.shape == people.length.shape == (n, 80, 80)
    assert people.bold.shape == (n, 80, volumes)
    assert torch.equal(people.sc, people.sc.mT) and not people.sc.diagonal(dim1=1, dim2=2).any()
    assert people.sc.sum(-1).mean(-1).tolist() == pytest.approx([1] * n)
    assert 200 < people.length.max() < 350
    assert people.names[0] == "sub-1"


def test_regions_are_cortical_and_have_their_twin_beside_them(people):
    assert not any(name.startswith(("Hippo", "Thal", "Caud", "Amyg", "Pall", "Puta")) for name in people.region)
    for i, j in enumerate(people.mirror.tolist()):
        assert people.region[i][:-1] == people.region[j][:-1] and people.region[i] != people.region[j]
    assert people.homotopic.sum(0).tolist() == [1] * 80
    left, right = people.centre[0::2], people.centre[1::2]
    assert (left[:, 0] < right[:, 0]).all()  # the first axis runs from left to right
    deep = brain.load(regions="all")
    assert deep.region[80] == "Thalamus_L" and deep.bold.shape[1] == 94


def test_unknown_choices_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown site 'hcpp'; allowed: hcp, gw"):
        brain.load("hcpp")
    with pytest.raises(ValueError, match="unknown regions"):
        brain.load(regions="white matter")
    with pytest.raises(ValueError, match="unknown map"):
        brain.biology("dopamine")


KNOWN = {  # own other half, mean of the others, another person, SC
    ("hcp", False): (0.817, 0.729, 0.593, 0.267),
    ("hcp", True): (0.765, 0.735, 0.599, 0.296),
    ("gw", False): (0.730, 0.629, None, 0.238),
}


@pytest.mark.parametrize(("site", "gsr"), KNOWN)
def test_baselines_are_those_known_of_these_data(site, gsr):
    found = [float(values.mean()) for values in brain.baselines(brain.load(site), gsr).values()]
    for value, known in zip(found, KNOWN[site, gsr], strict=True):
        assert known is None or value == pytest.approx(known, abs=2e-3)


def test_two_sessions_are_of_the_same_two_people():
    first, second = brain.sessions()
    fc = [brain.functional(people.signals(gsr=True)) for people in (first, second)]
    table = brain.score(fc[0][:, None], fc[1][None])
    assert table.argmax(1).tolist() == [0, 1]
    assert torch.equal(first.sc, second.sc) and torch.equal(first.mirror[first.mirror], torch.arange(100))


def test_group_averages_of_two_samples_are_nearly_one():
    group = brain.group()
    assert float(brain.score(group.fc_train, group.fc_test)) == pytest.approx(0.998, abs=1e-3)
    assert group.maps.shape == (5, 100)
    assert torch.equal(group.homotopic, group.homotopic.T) and not group.homotopic[:50, :50].any()
    assert group.maps.std(1).tolist() == pytest.approx([1] * 5, abs=0.02)


def test_the_filter_keeps_its_band_and_regression_takes_the_mean_out():
    t = torch.arange(600) * 0.72
    slow, fast, drift = (2 * math.pi * 0.05 * t).sin(), (2 * math.pi * 0.3 * t).sin(), 0.1 * t
    scan = torch.stack([slow + fast + drift, slow - fast + drift]) * 50 + 9000
    seen = brain.preprocess(scan, 0.72)
    inside = brain.functional(torch.stack([seen[0], slow[10:-10], fast[10:-10]]).double())
    assert inside[0, 1] > 0.99 and inside[0, 2].abs() < 0.05
    noise = torch.randn(5, 300, generator=seeded()) + torch.randn(300, generator=seeded(1))
    left = brain.preprocess(noise, 0.72, gsr=True, band=None)
    assert left.mean(0).abs().max() < 1e-10


def test_scans_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="40 volumes is too short"):
        brain.preprocess(torch.randn(3, 40), 0.72)
    flat = torch.randn(3, 100)
    flat[1] = 7
    with pytest.raises(ValueError, match="region 1 has a constant signal"):
        brain.preprocess(flat, 0.72)


def test_scores_are_those_of_numpy(people):
    fc = brain.functional(people.bold[:2])
    assert fc[0].numpy() == pytest.approx(np.corrcoef(people.bold[0].numpy()))
    a, b = (each.numpy()[np.triu_indices(80, 1)] for each in fc)
    assert float(brain.score(fc[0], fc[1])) == pytest.approx(np.corrcoef(a, b)[0, 1])
    others = brain.mean_of_others(torch.tensor([1.0, 2.0, 6.0])[:, None, None])
    assert others.flatten().tolist() == [4, 3.5, 1.5]


def test_the_lyapunov_solution_is_that_of_scipy(people):
    inputs = torch.randn(3, 80, generator=seeded(), dtype=torch.float64)
    q = torch.rand(80, generator=seeded(), dtype=torch.float64) + 0.5
    ours = models.covariance(people.sc, torch.full((7,), 0.8, dtype=q.dtype), -0.02, q, inputs)
    for sc, p in zip(people.sc, ours, strict=True):
        a = models.network(sc, 0.8).numpy()
        theirs = linalg.solve_continuous_lyapunov(a, -(torch.diag(q) + inputs.T @ inputs).numpy())
        assert p.numpy() == pytest.approx(theirs, rel=1e-10, abs=1e-10)


def test_its_gradient_is_that_of_finite_differences():
    draw = torch.randn(2, 3, 5, 5, generator=seeded(), dtype=torch.float64)

    def solve(a, q):
        return models.Lyapunov.apply((a + a.mT) / 2 - 6 * torch.eye(5), (q + q.mT) / 2)

    assert torch.autograd.gradcheck(solve, [draw[0].requires_grad_(), draw[1].requires_grad_()])


def test_a_network_without_a_stationary_state_is_refused(mean_sc):
    with pytest.raises(ValueError, match="has the eigenvalue 0.01"):
        models.covariance(mean_sc, 0.5, 0.01)


def test_regressing_the_mean_out_of_a_model_equals_doing_it_to_its_signals(mean_sc):
    p = models.covariance(mean_sc, 0.7)
    draws = torch.linalg.cholesky(p) @ torch.randn(80, 40_000, generator=seeded(), dtype=torch.float64)
    seen = brain.functional(brain.preprocess(draws, 0.72, gsr=True, band=None))
    assert rms(seen, models.correlation(p, gsr=True)) < 0.01


def test_with_one_frequency_the_hopf_covariance_is_the_linear_one(mean_sc):
    ours = models.hopf_covariance(mean_sc, 0.7)
    assert torch.allclose(ours, models.covariance(mean_sc, 0.7, q=models.BETA**2), rtol=1e-9)


def test_euler_acts_as_a_larger_a_and_the_exact_rotation_does_not(mean_sc):
    alone = torch.zeros(24)  # uncoupled oscillators have variance beta^2 / 2 |a|
    linear = {"cubic": False, "volumes": 600, "burn": 400}
    power = {step: float(models.hopf(mean_sc[None], alone, step=step, **linear).var()) for step in models.STEPS}
    shift = (2 * math.pi * 0.05) ** 2 * 0.072 / 2
    assert shift == pytest.approx(0.0036, abs=1e-4)
    assert power["rotation"] == pytest.approx(models.BETA**2 / 0.04, rel=0.03)
    assert power["euler"] == pytest.approx(models.BETA**2 / 2 / (0.02 - shift), rel=0.03)


@pytest.mark.parametrize("g", [0.4, 1.0])
def test_simulated_networks_have_the_covariance_of_the_formula(mean_sc, g):
    runs = torch.full((64,), g)
    exact = models.correlation(models.covariance(mean_sc, g))
    linear = pooled(models.hopf(mean_sc[None], runs, cubic=False, **LONG))
    assert rms(models.correlation(linear), exact) < 0.02
    cubic = models.correlation(pooled(models.hopf(mean_sc[None], runs, seed=1, **LONG)))
    assert rms(cubic, exact) < 0.03 and brain.score(cubic, exact) > 0.99


def test_regions_may_turn_at_their_own_speeds(mean_sc):
    frequency = 0.03 + 0.04 * torch.rand(1, 80, generator=seeded(), dtype=torch.float64)
    bold = models.hopf(mean_sc[None], torch.full((48,), 0.6), cubic=False, frequency=frequency, **LONG)
    found = models.correlation(pooled(bold))
    exact = models.correlation(models.hopf_covariance(mean_sc, 0.6, frequency[0]))
    alike = models.correlation(models.covariance(mean_sc, 0.6))
    assert rms(found, exact) < 0.02 < rms(alike, exact)


def test_people_couplings_and_seeds_share_one_tensor(people):
    g = torch.tensor([0.2, 0.2, 3.0])
    bold = models.hopf(people.sc, g, volumes=60, burn=200)
    assert bold.shape == (7, 3, 80, 60)
    fc = brain.upper(brain.functional(bold)).mean((0, 2))
    assert not torch.equal(bold[:, 0], bold[:, 1]) and fc[2] > fc[:2].max() + 0.2
    again = models.hopf(people.sc, g, volumes=60, burn=200)
    assert torch.equal(bold, again)


def test_a_diverging_run_and_an_unknown_step_say_so(mean_sc):
    with pytest.raises(ValueError, match="diverged"):
        models.hopf(mean_sc[None], torch.tensor([200.0]), volumes=50, burn=0)
    with pytest.raises(ValueError, match="unknown step 'heun'; allowed: rotation, euler"):
        models.hopf(mean_sc[None], torch.tensor([0.5]), step="heun")


def test_blood_flow_comes_to_the_rest_that_its_equations_give():
    blood, u = models.Balloon(torch.Size((2,))), torch.tensor([0.0, 0.2])
    for _ in range(6000):
        blood.step(u, 0.01)
    f = 1 + 0.2 / blood.C
    v = f**blood.ALPHA
    q = v * (1 - (1 - blood.RHO) ** (1 / f)) / blood.RHO
    expected = 0.02 * (7 * 0.34 * (1 - q) + 2 * (1 - q / v) + 0.48 * (1 - v))
    assert blood.seen().tolist() == pytest.approx([0, expected], abs=1e-5)


def test_the_mean_field_has_converged_at_its_time_step(mean_sc):
    g, bold = torch.tensor([0.3, 1.0]), {}
    for dt, slower in ((0.02, 1), (0.01, 2), (0.005, 4)):
        bold[dt] = models.mean_field(mean_sc[None], g, dt=dt, slower=slower, finest=0.005, volumes=120, burn=60)[0]
        assert bold[dt].shape == (2, 80, 120)
    finest = bold[0.005]
    off = {dt: (each - finest).square().mean((1, 2)).sqrt() / finest.std(-1).mean(-1) for dt, each in bold.items()}
    assert off[0.01].max() < 0.05
    assert off[0.02][0] < 0.05 and off[0.02][1] > 1  # too coarse above the jump, where gates move fast
    with pytest.raises(ValueError, match="dt 0.007 must divide tr 0.72"):
        models.mean_field(mean_sc[None], g, dt=0.007)


def test_surrogates_keep_static_fc_and_spectra_but_not_the_order_in_time(people):
    signals = people.signals()[:2]
    other = measures.phase_surrogate(signals, seeded())
    assert torch.allclose(brain.functional(other), brain.functional(signals), atol=1e-10)
    assert torch.allclose(torch.fft.rfft(other).abs(), torch.fft.rfft(signals).abs(), atol=1e-8)
    assert torch.corrcoef(torch.stack([other[0, 0], signals[0, 0]]))[0, 1].abs() < 0.5
    ours, theirs = measures.fcd(signals), measures.fcd(other)
    assert rms(ours[0], theirs[0]) > 0.1
    assert 0 < measures.ks_distance(ours, theirs) < 0.3
    assert measures.ks_distance(ours, ours) == 0


def test_fc_dynamics_is_that_of_explicit_windows(people):
    signals = people.signals()[0]
    found = measures.fcd(signals, width=100, hop=50)
    windows = [np.corrcoef(signals[:, i : i + 100])[np.triu_indices(80, 1)] for i in range(0, 1180 - 99, 50)]
    assert found.numpy() == pytest.approx(np.corrcoef(windows))
    with pytest.raises(ValueError, match="no two windows"):
        measures.fcd(signals[:, :80])


def test_the_peak_of_a_spectrum_is_found():
    t = torch.arange(1000) * 0.72
    waves = torch.stack([(2 * math.pi * f * t).sin() for f in (0.02, 0.07)])
    noisy = waves + 0.5 * torch.randn(waves.shape, generator=seeded())
    assert measures.peak_frequency(noisy[None], 0.72)[0].tolist() == pytest.approx([0.02, 0.07], abs=0.005)


def test_each_null_keeps_what_it_says_and_nothing_more(people, distance):
    sc, bins = people.sc, measures.pair_bins(distance)
    drawn = {kind: measures.null(kind, sc, distance, seeded()) for kind in measures.NULLS}
    for null in drawn.values():
        assert torch.allclose(null, null.mT) and not null.diagonal(dim1=1, dim2=2).any()
        assert brain.upper(null).sub(brain.upper(sc)).abs().mean() > 0.1 * brain.upper(sc).mean()
    for kind in ("shuffled", "distance"):
        assert torch.equal(brain.upper(drawn[kind]).sort().values, brain.upper(sc).sort().values)
    for kind in ("strength", "distance and strength", "strengths only"):
        assert torch.allclose(drawn[kind].sum(-1), sc.sum(-1), rtol=1e-3)
    for one in bins.unique():
        near = bins == one
        kept, given = (brain.upper(m)[:, near].sort().values for m in (drawn["distance"], sc))
        assert torch.equal(kept, given)
    with pytest.raises(ValueError, match="unknown null"):
        measures.null("degree", sc, distance, seeded())


def test_nulls_come_in_batches_and_differ(mean_sc, distance):
    many = measures.null("distance and strength", mean_sc.expand(4, -1, -1), distance, seeded())
    assert all(not torch.equal(many[0], other) for other in many[1:])
    with pytest.raises(ValueError, match="no scaling gives these strengths"):
        measures.with_strengths(torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]]), torch.ones(3))


def test_rewiring_keeps_degrees_and_refuses_dense_networks(mean_sc):
    sparse = measures.sparsified(mean_sc, 0.1)
    assert int((brain.upper(sparse) > 0).sum()) == 316
    other = measures.rewired(sparse, np.random.default_rng(0))
    assert torch.equal((other > 0).sum(-1), (sparse > 0).sum(-1)) and torch.equal(other, other.mT)
    assert torch.equal(brain.upper(other).sort().values, brain.upper(sparse).sort().values)
    assert int(((other > 0) & (sparse > 0)).sum()) < 0.5 * int((sparse > 0).sum())
    with pytest.raises(ValueError, match="too high to rewire"):
        measures.rewired(mean_sc, np.random.default_rng(0))


def test_wires_of_a_connectome_are_short(mean_sc, distance):
    sparse = measures.sparsified(mean_sc, 0.1)
    other = measures.shuffled(sparse, seeded())
    assert measures.wire_length(sparse, distance) < 0.6 * measures.wire_length(other, distance)
    pair = torch.tensor([[0.0, 1, 3], [1, 0, 0], [3, 0, 0]])
    assert float(measures.wire_length(pair, torch.tensor([[0.0, 10, 20], [10, 0, 5], [20, 5, 0]]))) == 17.5


def test_a_delay_line_remembers_its_length_and_loops_remember_little():
    line = torch.zeros(12, 12, dtype=torch.float64)
    line[torch.arange(1, 12), torch.arange(11)] = 1
    line[0, 11] = 1e-6  # hardly closed, so that it has a spectral radius to scale
    loops = torch.eye(12, dtype=torch.float64)
    radius = torch.tensor([1e-6 ** (1 / 12)], dtype=torch.float64)
    args = radius, torch.tensor([0]), torch.arange(12)
    memory = measures.memory_capacity(torch.stack([line, loops]), *args, lags=20)[:, 0]
    assert 10 < memory[0] < 12 and memory[1] < 3
    unread = measures.memory_capacity(loops[None], radius, torch.tensor([0]), torch.tensor([5]), lags=20)
    assert unread.max() < 0.1  # what reaches no region that is read cannot be recalled

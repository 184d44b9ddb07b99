"""Fitted twins: they find what made the data, never see who is left out, and meet the figures known of these people."""

from dataclasses import replace

import pytest
import torch

from recnb import brain
from recnb import brain_fits as fits
from recnb import brain_models as models
from recnb.brain_fits import TwinConfig

GRID = torch.logspace(-2.3, 0.7, 16, dtype=torch.float64)
SHARES = (0.0, 0.2, 0.4)


@pytest.fixture(scope="module")
def people():
    return brain.load()


@pytest.fixture(scope="module")
def fc(people):
    return {gsr: brain.functional(people.signals(gsr)) for gsr in (False, True)}


@pytest.fixture(scope="module")
def basis(people):
    return fits.shared_basis(people.mirror)


@pytest.fixture(scope="module")
def rich(people, fc, basis):
    """Group twins with shared inputs, for every pair left out."""
    config = TwinConfig(inputs=6, ridge=0.01, steps=(80, 150))
    return {gsr: fits.group_twins(people.sc, fc[gsr], basis, people.homotopic, config, gsr) for gsr in (False, True)}


def plain(people, basis, **terms):
    """An unfitted twin of one person, with chosen terms."""
    config = TwinConfig(steps=(1,), rate=0.0)
    fc = models.correlation(models.covariance(people.sc[:1], 0.7))
    return replace(fits.fit(people.sc[:1], fc, basis, people.homotopic, config)[0], **terms)


def test_a_group_basis_gives_both_sides_one_value(people, basis):
    assert basis.shape == (40, 80) and basis.sum(0).tolist() == [1] * 80
    values = torch.randn(40, dtype=torch.float64) @ basis
    assert torch.equal(values, values[people.mirror])


def test_an_unfitted_twin_is_the_homogeneous_network(people, basis):
    twin = plain(people, basis, h=torch.full((1,), -torch.inf), g=torch.zeros(1, dtype=torch.float64))
    direct = models.correlation(models.covariance(people.sc[:1], 1.0))
    assert torch.allclose(twin.fc(people.sc[:1]), direct)
    regressed = models.correlation(models.covariance(people.sc[:1], 1.0), gsr=True)
    assert torch.allclose(twin.fc(people.sc[:1], gsr=True), regressed)


def test_a_fit_finds_the_twin_that_made_the_data(people, basis):
    hidden = torch.randn(1, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    maker, sc = plain(people, basis, coefficients={"gain": hidden}), people.sc[:1]
    target = maker.fc(sc)
    early, late = fits.fit(sc, target, basis, people.homotopic, TwinConfig(("gain",), steps=(2, 200)))
    assert brain.score(early.fc(sc), target) < 0.95 and brain.score(late.fc(sc), target) > 0.999
    found = torch.cat([late.coefficients["gain"], hidden])
    assert torch.corrcoef(found)[0, 1] > 0.95


def test_twins_of_a_batch_do_not_touch_each_other(people, fc, basis):
    config = TwinConfig(inputs=2, ridge=0.1, steps=(10,))
    together = fits.fit(people.sc[:3], fc[False][:3], basis, people.homotopic, config)[0]
    alone = fits.fit(people.sc[1:2], fc[False][1:2], basis, people.homotopic, config)[0]
    assert torch.allclose(together.g[1:2], alone.g) and torch.allclose(together.inputs[1:2], alone.inputs)
    assert not alone.g.requires_grad


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match=r"unknown parts \['omega'\]; allowed: a, q, gain"):
        TwinConfig(parts=("a", "omega"))


def test_no_prediction_has_seen_the_people_left_out(people, fc, basis):
    config = TwinConfig(("a",), steps=(8,))
    spoilt, other = fc[False].clone(), people.sc.clone()
    spoilt[[1, 4]] = torch.eye(80, dtype=torch.float64) + 0.1 * fc[False][[0, 2]]
    other[[1, 4]] = people.sc[[0, 2]] ** 0.5
    before, after = (
        fits.group_twins(sc, each, basis, people.homotopic, config, own=False)
        for sc, each in ((people.sc, fc[False]), (other, spoilt))
    )
    changed = (before != after).flatten(3).any(-1)[0]
    assert changed.sum() == 49 - 2 and not changed[1, 4] and not changed[4, 1]
    means = (fits.group_means(fc[False]) != fits.group_means(spoilt)).flatten(3).any(-1)[0]
    assert torch.equal(means, changed)
    assert torch.allclose(fits.group_means(fc[False])[0].diagonal().movedim(-1, 0), brain.mean_of_others(fc[False]))


def test_choices_for_a_person_do_not_look_at_that_person(fc):
    table = fits.blend(fits.group_means(fc[False]), fc[False][None, None], SHARES)  # the second gives the answer away
    honest = fits.nested(table, fc[False])
    assert honest.chosen.tolist() == [2] * 7
    spoilt = table.clone()
    spoilt[2, 3] = spoilt[2, 3].flip(-1)  # for person 3 the best alternative now fails on all others
    spoilt[2, 3, 3] = table[2, 3, 3]
    misled = fits.nested(spoilt, fc[False])
    assert misled.chosen.tolist() == [2, 2, 2, 1, 2, 2, 2]
    assert misled.scores[3] == honest.fixed[1, 3] < honest.scores[3]


def test_blends_and_images_are_what_they_say(people, fc):
    both = fits.blend(fc[False][:1], fc[False][1:2], (0.0, 1.0))
    assert torch.allclose(both, fits.standardised(fc[False][:2]))
    image = fits.mirrored(fc[False], people.mirror)
    assert torch.equal(image[:, 0, 2], fc[False][:, 1, 3]) and not torch.equal(image, fc[False])


@pytest.mark.parametrize(("gsr", "known"), [(False, 0.472), (True, 0.342)])
def test_global_coupling_alone_scores_what_is_known(people, fc, gsr, known):
    found = fits.nested(fits.sweep(people.sc, GRID, gsr), fc[gsr])
    assert float(found.scores.mean()) == pytest.approx(known, abs=0.006)
    assert found.scores.mean() <= found.fixed.max(0).values.mean()


@pytest.mark.parametrize(("gsr", "least"), [(False, 0.65), (True, 0.55)])
def test_region_parameters_score_what_is_known_and_stay_below_the_mean_of_others(people, fc, basis, gsr, least):
    config = TwinConfig(steps=(80,))
    table = fits.group_twins(people.sc, fc[gsr], basis, people.homotopic, config, gsr)
    score, mean = fits.nested(table, fc[gsr]).scores.mean(), fits.nested(fits.group_means(fc[gsr]), fc[gsr]).scores
    assert least < score < mean.mean() - 0.04


@pytest.mark.parametrize(("gsr", "least"), [(False, 0.71), (True, 0.71)])
def test_shared_inputs_come_near_the_mean_of_others_and_improve_it(fc, rich, gsr, least):
    mean = fits.group_means(fc[gsr])
    alone, base = fits.nested(rich[gsr], fc[gsr]).scores, fits.nested(mean, fc[gsr]).scores
    mixed = fits.nested(fits.blend(mean, rich[gsr], SHARES), fc[gsr]).scores
    assert least < alone.mean() < base.mean() < mixed.mean()


def test_a_personal_twin_beats_the_group_but_not_by_its_connectome(people, fc):
    signals = people.signals()
    first, second = brain.halves(signals)
    group = brain.score(brain.mean_of_others(first), second)
    configs = [TwinConfig(inputs=3, steps=(40, 80))]
    scores = {}
    for name, sc in (("own", people.sc), ("neighbour", people.sc.roll(1, 0))):
        foretold, chosen = fits.personal_twins(signals, sc, people.homotopic, configs)
        table = fits.swap(foretold, second)
        scores[name] = table.diagonal().mean()
        assert fits.identified(table) >= 5 and chosen[1] in (40, 80)
    assert scores["own"] > group.mean() + 0.08
    assert abs(scores["own"] - scores["neighbour"]) < 0.02
    assert scores["own"] < brain.score(first, second).mean()


def test_the_second_half_of_a_scan_changes_nothing(people):
    signals = people.signals()[:2]
    spoilt = signals.clone()
    spoilt[..., signals.shape[-1] // 2 :] = 1 + torch.rand(spoilt[..., signals.shape[-1] // 2 :].shape)
    configs = [TwinConfig(("a",), steps=(3, 6))]
    ours, theirs = (fits.personal_twins(s, people.sc[:2], people.homotopic, configs)[0] for s in (signals, spoilt))
    assert torch.equal(ours, theirs)


def test_lesions_hurt_most_where_connections_were(people, basis):
    sc = people.sc[:1].clone()
    sc[:, 7], sc[:, :, 7] = 0, 0
    twin = plain(people, basis, h=torch.full((1,), -torch.inf))
    effect = fits.lesions(twin, sc)[0]
    assert effect[7] < 1e-9 < effect.sort().values[1]
    whole = fits.lesions(twin, people.sc[:1])[0]
    strength = people.sc[0].sum(-1)
    assert torch.corrcoef(torch.stack([whole, strength]))[0, 1] > 0.6
    alive = torch.ones(80, dtype=torch.float64)
    alive[3] = 0
    cut, kept = twin.fc(people.sc[:1], alive=alive)[0], [i for i in range(80) if i != 3]
    left = models.correlation(models.covariance(people.sc[0][kept][:, kept], twin.g.exp()[0]))
    assert torch.allclose(cut[kept][:, kept], left)


def test_stimulation_mends_more_than_its_controls(people, basis):
    twin = plain(people, basis)
    sc, alive = people.sc[:1], torch.ones(80, dtype=torch.float64)
    alive[people.sc[0].sum(-1).topk(6).indices] = 0.5
    whole = twin.fc(sc)

    def error(excite):
        return float(fits.fc_error(twin.fc(sc, alive=alive, excite=excite), whole))

    found = fits.stimulate(twin, sc, alive, steps=60)
    uniform = fits.stimulate(twin, sc, alive, uniform=True, steps=60)
    permuted = found[:, torch.randperm(80, generator=torch.Generator().manual_seed(0))]
    assert error(found) < min(error(uniform), error(permuted)) < error(0.0)
    assert found.abs().max() <= 1 and uniform.unique().numel() == 1

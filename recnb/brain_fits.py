"""Twins fitted by gradient: region parameters of the linear network, for a group or for one person.

A twin has somebody's SC, a coupling G, a weight of homotopic fibres (tractography misses many of those between the
hemispheres), region by region a decay a, a noise q and a gain of all connections, and a few noise inputs shared by
many regions. All are fitted to FC, so none of them is biology; G and SC alone are what structure says.

Predictions for people left out come as one table of shape (..., S, S, N, N): entry [i, j] is the FC foretold for person
j by what has seen neither i nor j. Its diagonal is the held-out prediction; what stands beside it in row i may choose
among alternatives for person i (`nested`), without a look at that person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recnb.brain import functional, halves, score, upper
from recnb.brain_models import A, correlation, covariance

PARTS = ("a", "q", "gain")
START = {"g": -0.3, "h": -2.5}  # logarithms; near the best G of the homogeneous network


@dataclass(frozen=True)
class TwinConfig:
    """What is fitted and how.

    Attributes:
        parts: which of `PARTS` vary over regions.
        inputs: noise inputs shared between regions; a low-rank part of the noise covariance.
        homotopic: learn a weight between each region and its twin in the other hemisphere.
        steps: of Adam, in rising order; each number gives a twin.
        rate: step size.
        ridge: penalty on the mean square of each part's coefficients, and of each input's.
        seed: of the inputs' first values.
    """

    parts: tuple[str, ...] = PARTS
    inputs: int = 0
    homotopic: bool = True
    steps: tuple[int, ...] = (150,)
    rate: float = 0.05
    ridge: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse parts that no twin has."""
        if wrong := set(self.parts) - set(PARTS):
            raise ValueError(f"unknown parts {sorted(wrong)}; allowed: {', '.join(PARTS)}")


@dataclass(frozen=True)
class Twin:
    """F fitted twins; connectomes come as (..., F, N, N).

    Attributes:
        g, h: logarithms of the coupling and of the homotopic weight (F,); h is -inf for none.
        coefficients: part -> (F, K), deviations from one value everywhere.
        inputs: (F, R, K), how strongly each shared input reaches the regions.
        basis: (K, N), from coefficients to regions.
        homotopic: 1 between homotopic regions (N, N).
    """

    g: Tensor
    h: Tensor
    coefficients: dict[str, Tensor]
    inputs: Tensor
    basis: Tensor
    homotopic: Tensor

    def region(self, part: str) -> Tensor:
        """Values over regions (F, N): a in 1/s and negative, q and gain without unit."""
        zero = torch.zeros(len(self.g), len(self.basis), dtype=self.basis.dtype)
        return (A if part == "a" else 1.0) * (self.coefficients.get(part, zero) @ self.basis).exp()

    def network(self, sc: Tensor, alive: Tensor | None = None) -> Tensor:
        """Effective connections (..., F, N, N) without G; ``alive`` (..., F, N) scales those of single regions."""
        gain = self.region("gain")
        sc = gain[..., :, None] * sc * gain[..., None, :] + self.h.exp()[:, None, None] * self.homotopic
        return sc if alive is None else alive[..., :, None] * sc * alive[..., None, :]

    def fc(self, sc: Tensor, gsr: bool = False, alive: Tensor | None = None, excite: Tensor | float = 0.0) -> Tensor:
        """FC (..., F, N, N); ``excite`` adds to the logarithm of -a (..., F, N): below 0 is closer to oscillating."""
        a = self.region("a") * torch.as_tensor(excite, dtype=sc.dtype).exp()
        network = self.network(sc, alive)
        return correlation(covariance(network, self.g.exp(), a, self.region("q"), self.inputs @ self.basis), gsr)

    def copy(self) -> Twin:
        """As it is now, without gradients."""
        parts = {part: values.detach().clone() for part, values in self.coefficients.items()}
        g, h, inputs = (values.detach().clone() for values in (self.g, self.h, self.inputs))
        return replace(self, g=g, h=h, coefficients=parts, inputs=inputs)


def shared_basis(mirror: Tensor) -> Tensor:
    """One value for both regions of a homotopic pair: (N / 2, N)."""
    eye = torch.eye(len(mirror), dtype=torch.float64)
    first = torch.arange(len(mirror)) < mirror
    return (eye + eye[mirror])[first]


def standardised(fc: Tensor) -> Tensor:
    """FC (..., N, N) with mean 0 and standard deviation 1 over its pairs, so that r alone counts."""
    pairs = upper(fc)
    return (fc - pairs.mean(-1)[..., None, None]) / pairs.std(-1)[..., None, None]


def fit(
    sc: Tensor, target: Tensor, basis: Tensor, homotopic: Tensor, config: TwinConfig, gsr: bool = False
) -> list[Twin]:
    """Fit F twins at once, each to raise the r of its FC with a target; one `Twin` of F for each of ``config.steps``.

    Args:
        sc: (F, N, N).
        target: FC (F, N, N). The mean of several people's `standardised` FC asks for the highest mean r with them.
        basis: (K, N): `shared_basis` for a group, the identity for one person, maps of biology.
        homotopic: see `recnb.brain.People.homotopic`.
        config: what is fitted.
        gsr: the target's global signal was regressed out; the model's then is, too.
    """
    count, size = len(target), len(basis)
    draws = torch.Generator().manual_seed(config.seed)
    first = torch.randn(config.inputs, size, generator=draws, dtype=torch.float64) * (0.3 if config.inputs else 0)
    twin = Twin(
        g=torch.full((count,), START["g"], dtype=torch.float64),
        h=torch.full((count,), START["h"] if config.homotopic else -torch.inf, dtype=torch.float64),
        coefficients={part: torch.zeros(count, size, dtype=torch.float64) for part in config.parts},
        inputs=first.expand(count, -1, -1).clone(),
        basis=basis,
        homotopic=homotopic,
    )
    learned = [twin.g, *([twin.h] if config.homotopic else []), *twin.coefficients.values(), twin.inputs]
    adam = torch.optim.Adam([values.requires_grad_() for values in learned], config.rate)
    found = []
    for step in range(1, max(config.steps) + 1):
        adam.zero_grad()
        loss = (1 - score(twin.fc(sc, gsr), target)).sum()  # twins share no parameter: each has its own loss
        for values in (*twin.coefficients.values(), twin.inputs):
            loss = loss + config.ridge * values.square().sum() / size
        loss.backward()
        adam.step()
        if step in config.steps:
            found.append(twin.copy())
    return found


def sweep(sc: Tensor, g: Tensor, gsr: bool = False) -> Tensor:
    """FC of the homogeneous network for each coupling g (C,) and connectome (S, N, N): (C, 1, S, N, N)."""
    return correlation(covariance(sc, g[:, None].expand(-1, len(sc))), gsr)[:, None]


def without_pairs(values: Tensor) -> Tensor:
    """Mean over people of (S, ...) without i and without j: (S, S, ...)."""
    people = len(values)
    out = 1 - torch.eye(people, dtype=values.dtype)
    keep = out[:, None] * out[None]
    keep = keep / keep.sum(-1, keepdim=True)
    return (keep @ values.flatten(1)).reshape(people, people, *values.shape[1:])


def group_twins(
    sc: Tensor, fc: Tensor, basis: Tensor, homotopic: Tensor, config: TwinConfig, gsr: bool = False, own: bool = True
) -> Tensor:
    """FC foretold by group twins, fitted to mean SC and mean FC without i and j: (len(steps), S, S, N, N).

    Args:
        sc: of all people (S, N, N).
        fc: of all people (S, N, N).
        basis: see `fit`.
        homotopic: see `fit`.
        config: see `fit`.
        gsr: see `fit`.
        own: put person j's own SC into the twin; else the SC that it was fitted with.
    """
    people = len(fc)
    rows, columns = torch.triu_indices(people, people)  # i, j and j, i leave the same people
    means, targets = without_pairs(sc)[rows, columns], without_pairs(standardised(fc))[rows, columns]
    place = torch.empty(people, people, dtype=torch.long)
    place[rows, columns] = place[columns, rows] = torch.arange(len(rows))
    twins = fit(means, targets, basis, homotopic, config, gsr)
    with torch.no_grad():
        if not own:
            return torch.stack([twin.fc(means, gsr)[place] for twin in twins])
        each = [torch.stack([twin.fc(person[None], gsr) for person in sc], 1) for twin in twins]
        return torch.stack([fcs[place, torch.arange(people)] for fcs in each])


def group_means(fc: Tensor) -> Tensor:
    """The mean FC of all people but i and j, the model-free prediction: (S, N, N) to (1, S, S, N, N)."""
    return without_pairs(fc)[None]


def mirrored(fc: Tensor, mirror: Tensor) -> Tensor:
    """FC (..., N, N) with left and right exchanged; blended in, it damps chance in a mean, without a model."""
    return fc[..., mirror, :][..., mirror]


def blend(first: Tensor, second: Tensor, shares: Sequence[float]) -> Tensor:
    """Mixtures of two predictions, both `standardised`: ``share`` of the second, rest of the first.

    (1, ..., N, N) or (C, ..., N, N) of each, to (len(shares) C, ..., N, N).
    """
    first, second = standardised(first), standardised(second)
    return torch.cat([(1 - share) * first + share * second for share in shares])


@dataclass(frozen=True)
class Nested:
    """Held-out scores with every choice made on other people.

    Attributes:
        scores: r for each person (S,).
        chosen: the alternative taken for each person (S,).
        fixed: r of each alternative for each person (C, S), what choosing by hindsight would look at.
    """

    scores: Tensor
    chosen: Tensor
    fixed: Tensor


def nested(foretold: Tensor, fc: Tensor) -> Nested:
    """Choose among C alternatives for person i by the mean score of the others in row i, then score i.

    ``foretold`` is (C, S, S, N, N), or (C, 1, S, N, N) when nothing was fitted to anybody.
    """
    people = len(fc)
    r = score(foretold, fc).expand(-1, people, people)
    fixed = r.diagonal(dim1=1, dim2=2)
    chosen = (r.sum(2) - fixed).argmax(0)
    return Nested(fixed[chosen, torch.arange(people)], chosen, fixed)


def personal_twins(
    signals: Tensor, sc: Tensor, homotopic: Tensor, configs: Sequence[TwinConfig], gsr: bool = False
) -> tuple[Tensor, tuple[TwinConfig, int]]:
    """FC that each person's twin, fitted to the first half of the scan, foretells for the second: (S, N, N).

    Configuration and steps, the same for all people, are chosen within the first half, by fitting its first and scoring
    its second part; the second half of the scan is never looked at. Also returns what was chosen.

    Args:
        signals: preprocessed (S, N, T).
        sc: connectomes to use, own or swapped (S, N, N).
        homotopic: see `fit`.
        configs: alternatives.
        gsr: see `fit`.
    """
    middle, basis = signals.shape[-1] // 2, torch.eye(sc.shape[-1], dtype=torch.float64)
    first, second = halves(signals[..., :middle])
    best, chosen = -torch.inf, (configs[0], configs[0].steps[0])
    for config in configs:
        for steps, twin in zip(config.steps, fit(sc, first, basis, homotopic, config, gsr), strict=True):
            if (r := float(score(twin.fc(sc, gsr), second).mean())) > best:
                best, chosen = r, (config, steps)
    config = replace(chosen[0], steps=(chosen[1],))
    twin = fit(sc, functional(signals[..., :middle]), basis, homotopic, config, gsr)[0]
    return twin.fc(sc, gsr), chosen


def swap(foretold: Tensor, measured: Tensor) -> Tensor:
    """r of the twin of i with person j, (S, S); a personal twin is best on its diagonal."""
    return score(foretold[:, None], measured[None])


def identified(table: Tensor) -> int:
    """How many twins of a `swap` table fit their own person best; chance gives 1 on average."""
    return int((table.argmax(1) == torch.arange(len(table))).sum())


@torch.no_grad()
def lesions(twin: Twin, sc: Tensor, gsr: bool = False) -> Tensor:
    """How much the FC among all other regions changes when a region loses its connections: RMS (F, N)."""
    regions = sc.shape[-1]
    alive = 1 - torch.eye(regions, dtype=sc.dtype)[:, None]
    change = (twin.fc(sc, gsr, alive) - twin.fc(sc, gsr)).square()
    others = alive[..., :, None] * alive[..., None, :] * (1 - torch.eye(regions, dtype=sc.dtype))
    return ((change * others).sum((-1, -2)) / ((regions - 1) * (regions - 2))).sqrt().T


def fc_error(ours: Tensor, measured: Tensor) -> Tensor:
    """Root mean square difference of two FC (..., N, N) over pairs: (...)."""
    return (upper(ours) - upper(measured)).square().mean(-1).sqrt()


def stimulate(
    twin: Twin,
    sc: Tensor,
    alive: Tensor,
    *,
    uniform: bool = False,
    steps: int = 100,
    limit: float = 1.0,
    rate: float = 0.1,
) -> Tensor:
    """Excitability that brings the FC of a damaged network closest to that of the whole one, by gradient: (F, N).

    Args:
        twin: F twins.
        sc: (F, N, N).
        alive: what is left of each region's connections, from 0 to 1, (F, N) or (N,).
        uniform: one value for all regions: the first control. The second is the found pattern on other regions.
        steps: of Adam.
        limit: largest change of the logarithm of -a, either way.
        rate: step size.
    """
    with torch.no_grad():
        whole = twin.fc(sc)
    free = torch.zeros(len(sc), 1 if uniform else sc.shape[-1], dtype=sc.dtype, requires_grad=True)
    adam = torch.optim.Adam([free], rate)
    for _ in range(steps):
        adam.zero_grad()
        fc_error(twin.fc(sc, alive=alive, excite=limit * free.tanh()), whole).sum().backward()
        adam.step()
    return (limit * free.detach().tanh()).expand(-1, sc.shape[-1])

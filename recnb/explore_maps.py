"""Maps of vectors without widgets: projections kept in the store, neighbours, clusters, colours, search, a picture.

`recnb.explore` shows them. Vectors are (n, d) arrays of anything: items, texts, states, regions of a brain.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from recnb import plots
from recnb.profiles import known
from recnb.store import Store

METHODS = ("PCA", "t-SNE", "UMAP")
MEASURES = ("centred cosine", "cosine", "distance")
FITTED = 10_000  # t-SNE and UMAP are fitted to so many points; others are placed among the nearest of these
DRAWN = 50_000  # most points of a picture
LISTED = 200  # most rows of a list or table on screen
BACKGROUND = {False: "#ffffff", True: "#111111"}  # by dark
INK = {False: "#000000", True: "#ffffff"}
GREY = "#949494"
BINS = 6
STYLE = """<style>
.recnb-table {line-height: 1.3}
.recnb-table table {font-size: 12px; border-collapse: collapse}
.recnb-table :is(td, th) {padding: 1px 8px; text-align: left; vertical-align: top}
.recnb-legend span {white-space: nowrap; margin-right: 12px}
</style>"""
MOST = 7  # named groups; as many colours of the palette can be told from white and from black


def array(name: str, value: Any, rows: int) -> np.ndarray:
    """An array or tensor as float32 (rows, d).

    Raises:
        ValueError: when it has another shape.
    """
    found = torch.as_tensor(value).detach().cpu().float().numpy()
    if found.ndim != 2 or len(found) != rows:
        raise ValueError(f"{name!r} has the shape {found.shape}; there are {rows} points: give ({rows}, d)")
    return found


def written(column: pd.Series) -> pd.Series:
    """A column as text: four digits of a fraction, nothing where nothing is known."""
    if pd.api.types.is_float_dtype(column):
        return column.map("{:.4g}".format).where(column.notna(), "").astype(str)
    return column.astype(str).where(column.notna(), "")


def text_table(frame: pd.DataFrame, caption: str = "") -> str:
    """A table as HTML, every text in it escaped."""
    with pd.option_context("display.max_colwidth", None):
        body = frame.to_html(index=False, border=0)
    return f'<div class="recnb-table"><b>{html.escape(caption)}</b>{body}</div>'


def unit(vectors: np.ndarray, centred: bool = True) -> np.ndarray:
    """Rows of length 1 (n, d), after taking out their mean when ``centred``; a row of zeros stays one."""
    moved = vectors - vectors.mean(0) if centred else vectors
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)


def coordinates(vectors: np.ndarray, method: str, seed: int = 0) -> np.ndarray:
    """Positions (n, 3), float32; the third is zero but for PCA. t-SNE and UMAP go by centred cosine and are stored.

    Raises:
        ValueError: unknown method.
    """
    known("map", method, METHODS)
    if method == "PCA":
        return project(vectors, vectors)
    digest = hashlib.sha256(vectors.astype(np.float32).tobytes()).hexdigest()
    config = {"vectors": digest, "shape": vectors.shape, "method": method, "seed": seed}

    def make() -> dict[str, dict[str, torch.Tensor]]:
        return {"map.safetensors": {"xyz": torch.from_numpy(_fitted(unit(vectors), method, seed))}}

    return Store().load_or_make("map", config, make, (sys.modules[__name__],))["map.safetensors"]["xyz"].numpy()


def project(vectors: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (m, d) in the three main directions of vectors (n, d): (m, 3) float32, zeros where d or n is smaller."""
    count = min(3, *vectors.shape)
    found = PCA(count, random_state=0).fit(vectors).transform(points)
    return np.pad(found, [(0, 0), (0, 3 - count)]).astype(np.float32)


def _fitted(rows: np.ndarray, method: str, seed: int) -> np.ndarray:
    some = np.random.default_rng(seed).permutation(len(rows))[:FITTED] if len(rows) > FITTED else np.arange(len(rows))
    if method == "t-SNE":
        how = TSNE(init="pca", max_iter=500, perplexity=min(30, (len(some) - 1) / 3), random_state=seed, n_jobs=1)
    else:
        from umap import UMAP  # seconds, and only when it is asked for

        how = UMAP(n_neighbors=min(15, len(some) - 1), random_state=seed, n_jobs=1)
    xy = how.fit_transform(rows[some])
    if len(some) < len(rows):
        xy = among(rows, rows[some], xy)
    return np.pad(xy, [(0, 0), (0, 1)]).astype(np.float32)


def among(points: np.ndarray, vectors: np.ndarray, positions: np.ndarray, k: int = 5) -> np.ndarray:
    """Where points (m, d) lie on a map that was made without them: mean position of the k nearest vectors (n, d)."""
    near = NearestNeighbors(n_neighbors=min(k, len(vectors))).fit(vectors).kneighbors(points, return_distance=False)
    return positions[near].mean(1)


def likeness(vectors: np.ndarray, point: np.ndarray, measure: str = MEASURES[0]) -> np.ndarray:
    """How near every vector (n, d) is to a point (d,), higher is nearer: a cosine, or minus the distance; (n,).

    Raises:
        ValueError: unknown measure.
    """
    known("measure", measure, MEASURES)
    if measure == "distance":
        return -np.linalg.norm(vectors - point, axis=1)
    mean = vectors.mean(0) if measure == "centred cosine" else np.zeros_like(point)
    moved, goal = vectors - mean, point - mean
    return moved @ goal / np.maximum(np.linalg.norm(moved, axis=1) * np.linalg.norm(goal), 1e-12)


def nearest(like: np.ndarray, k: int, without: Sequence[int] = ()) -> np.ndarray:
    """The k highest places of ``like`` (n,), highest first, some left out."""
    like = like.copy()
    like[list(without)] = -np.inf
    count = min(k, len(like) - len(without))
    best = np.argpartition(-like, min(count, len(like) - 1))[: count + 1] if len(like) > count else np.arange(len(like))
    return best[np.argsort(-like[best], kind="stable")][:count]


def clusters(vectors: np.ndarray, names: pd.Series, weight: np.ndarray, count: int = MOST, seed: int = 0) -> pd.Series:
    """A cluster for every vector (k-means by centred cosine), called after its member of most weight."""
    rows = unit(vectors)
    label = MiniBatchKMeans(min(count, len(rows)), random_state=seed, n_init=3, batch_size=4096).fit_predict(rows)
    frame = pd.DataFrame({"label": label, "weight": weight})
    first = frame.groupby("label")["weight"].idxmax()
    return pd.Series(label).map(names.reset_index(drop=True).loc[first].set_axis(first.index))


@dataclass(frozen=True)
class Groups:
    """Points in a few groups to colour.

    Attributes:
        code: of each point (n,).
        names: of the groups; the grey one ("other", "unknown") stands last where there is one.
        ordered: groups are ranges of a number.
        grey: there is a grey one.
    """

    code: np.ndarray
    names: list[str]
    ordered: bool
    grey: bool

    def colours(self, dark: bool = False) -> list[str]:
        """A colour a group, told apart by colour-blind readers and from the background; numbers go dark to light."""
        count = len(self.names) - self.grey
        if self.ordered:
            shades = sns.color_palette("viridis", 256).as_hex()
            shades = shades[80:] if dark else shades[:200]
            found = [shades[int(place)] for place in np.linspace(0, len(shades) - 1, count)]
        else:
            pale = [colour for colour in plots.COLOURS if contrast(colour, BACKGROUND[False]) < 2 or colour == GREY]
            found = [colour for colour in plots.COLOURS if colour not in pale][:count]
        return found + [GREY] * self.grey

    @property
    def labels(self) -> pd.Series:
        """The code of each point as a category, which jupyter-scatter colours by."""
        kinds = pd.Index([str(code) for code in range(len(self.names))])
        return pd.Series(pd.Categorical.from_codes(self.code, kinds))

    def legend(self, title: str, dark: bool = False) -> str:
        """A dot and a name a group, as HTML, with the style of all that stands around the maps."""
        dots = zip(self.names, self.colours(dark), strict=True)
        spans = [f'<span><b style="color:{colour}">●</b> {html.escape(name)}</span>' for name, colour in dots]
        return f'{STYLE}<div class="recnb-legend">{html.escape(title)}: {"".join(spans)}</div>'

    def counted(self, points: np.ndarray) -> str:
        """How many points there are, and of which groups most."""
        parts = np.bincount(self.code[points], minlength=len(self.names))
        told = ", ".join(f"{self.names[code]} {parts[code]}" for code in np.argsort(-parts)[:4] if parts[code])
        return f"{len(points)} of {len(self.code)} selected: {told}"


def contrast(first: str, second: str) -> float:
    """Contrast of two colours, from 1 to 21, as web standards reckon it (WCAG 2)."""

    def light(colour: str) -> float:
        rgb = np.array(to_rgb(colour))
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((light(first), light(second)))
    return (high + 0.05) / (low + 0.05)


def groups(values: pd.Series) -> Groups:
    """Numbers in ranges that hold equally many points, anything else by its most frequent values; the rest is grey."""
    values = values.reset_index(drop=True)
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > MOST:
        code = pd.factorize(pd.qcut(values, BINS, duplicates="drop"), sort=True)[0]
        ends = values.groupby(code).agg(["min", "max"]).drop(index=-1, errors="ignore")
        names, other, ordered = [f"{low:g}–{high:g}" for low, high in ends.to_numpy()], "unknown", True
    else:
        text = values.astype("string").where(values.notna() & (values.astype("string") != ""))
        names, other, ordered = [str(name) for name in text.value_counts().index[:MOST]], "other", False
        code = pd.Categorical(text, names).codes
    missing = bool((code < 0).any())
    return Groups(np.where(code < 0, len(names), code), names + [other] * missing, ordered, missing)


def find(names: pd.Series, texts: pd.Series, query: str, weight: np.ndarray) -> np.ndarray:
    """Rows in which every word of the query occurs, those named so first, then by weight.

    Args:
        names: of the points (n,).
        texts: name and all else that is searched, in lower case (n,).
        query: words; or ``/pattern/``, a regular expression on names, which finds nothing while it is none.
        weight: (n,).
    """
    query = query.strip()
    if len(query) > 2 and query[0] == query[-1] == "/":
        try:
            hits = names.str.contains(re.compile(query[1:-1], re.IGNORECASE)).to_numpy(bool)
        except re.error:
            return np.empty(0, int)
    else:
        hits = np.full(len(names), bool(query))
        for word in query.lower().split():
            hits &= texts.str.contains(word, regex=False).to_numpy()
    rows = np.flatnonzero(hits)
    low = names.iloc[rows].str.lower()
    called = np.where(low == query.lower(), 2, low.str.startswith(query.lower()))
    return rows[np.lexsort((-weight[rows], -called))]


def crowding(xy: np.ndarray, size: np.ndarray) -> np.ndarray:
    """How near one must come until a label at each place of xy (m, 2) covers no earlier one: at least 1, (m,).

    ``size`` (2,) is a label's width and height from afar, in the units of xy.
    """
    apart = (np.abs(xy[:, None] - xy[None]) / (size + 1e-9)).max(2)
    return np.tril(1 / np.maximum(apart, 1e-3), -1).max(1, initial=1)


def tags(names: pd.Series, xy: np.ndarray, size: np.ndarray, dark: bool = False) -> pd.DataFrame:
    """Names at places (m, 2) as jupyter-scatter's page reads them, each seen once it covers no earlier one."""
    if not len(xy):  # the page would keep the names that it has
        return tags(pd.Series([" "]), np.zeros((1, 2)), size)
    near = crowding(xy, size)
    look: dict[str, Any] = {"zoomOut": np.inf, "zoomFadeExtent": 0.0, "fontColor": INK[dark], "fontFace": "arial"}
    look |= {"fontStyle": "normal", "fontWeight": "normal", "fontSize": 12}
    found = pd.DataFrame({"label": names.str[:30].to_numpy(str), "x": xy[:, 0], "y": xy[:, 1]})
    return found.assign(zoomIn=np.where(near > 1, near, 0), **look)


@dataclass(frozen=True)
class View:
    """What one map of a picture shows: title, positions (n, 2), the chosen point's lines, and a path (T, 2)."""

    title: str
    xy: np.ndarray
    chosen: int | None
    near: np.ndarray
    path: np.ndarray


def picture(views: Sequence[View], grouped: Groups, names: pd.Series, selected: np.ndarray) -> Figure:
    """The maps side by side, for readers without a kernel: groups in colour, selected points in black, some named."""
    figure, axes = plots.axes(4.8 * len(views), 4.6, len(views))
    colours = np.array(grouped.colours())[grouped.code]
    some = np.arange(0, len(names), -(-len(names) // DRAWN))
    for ax, view in zip(axes, views, strict=True):
        ax.scatter(view.xy[some, 0], view.xy[some, 1], s=2 if len(some) > 5000 else 9, c=colours[some], lw=0, alpha=0.7)
        ax.scatter(view.xy[selected, 0], view.xy[selected, 1], s=14, color=INK[False], lw=0)
        if view.chosen is not None:
            for other in view.near:
                ax.plot(*view.xy[[view.chosen, other]].T, color=INK[False], lw=0.7)
        ax.plot(*view.path.T, ".-", color=INK[False], lw=1)
        middle, half = (view.xy.max(0) + view.xy.min(0)) / 2, np.ptp(view.xy, axis=0).max() * 0.53
        free = crowding(view.xy[selected[:LISTED]], half * np.array([0.6, 0.07])) <= 1
        for item in selected[:LISTED][free][:6]:
            label = plots.plain_text(names.iloc[item])[:24]
            left = view.xy[item, 0] < middle[0] + 0.4 * half
            how: dict[str, Any] = {"xytext": (3 if left else -3, 3), "ha": "left" if left else "right"}
            ax.annotate(label, view.xy[item], textcoords="offset points", fontsize=7, **how)
        ax.set(xticks=[], yticks=[], title=plots.plain_text(view.title), aspect="equal")
        ax.set(xlim=middle[0] + half * np.array([-1, 1]), ylim=middle[1] + half * np.array([-1, 1]))
        ax.grid(False)
        ax.spines[:].set_visible(False)
    for name, colour in zip(grouped.names, grouped.colours(), strict=True):
        axes[0].scatter([], [], s=18, color=colour, label=plots.plain_text(name)[:24])
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def png(figure: Figure) -> str:
    """A figure as PNG of few colours, a quarter of the usual size, in base64; the figure is closed."""
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(255, Image.Quantize.MAXCOVERAGE).save(small, format="png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()

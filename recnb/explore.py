"""The embedding explorer: linked maps of the same points in several spaces, for JupyterLab and Notebook 7.

Find by name, lasso to a table, neighbours in two spaces side by side, the path of a person or of an oracle. The maps
are jupyter-scatter's; nothing comes from a network. Every control is reached by the keyboard, and what can be lassoed
can be searched for. Names are shown as text, whatever they hold. Without a kernel there is a picture of it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as ui
import jscatter
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from recnb import explore_maps as maps
from recnb.explore_maps import BACKGROUND, INK, LISTED, MEASURES, METHODS, View, text_table
from recnb.explore_parts import Page, control, row
from recnb.profiles import known

GLIDING = 20_000  # so many points glide to new places and follow a slider at once; more jump
NOTHING = "Nothing is selected: find, click, or hold the mouse down and draw a lasso."
LINE = "#de8f05"  # orange, seen on white and on black


class Pane:
    """One map with the choice of what it shows, and the chosen point's neighbours below it; part of an `Explorer`."""

    def __init__(self, owner: Explorer, space: str, start: str, height: int) -> None:
        self.owner, count = owner, len(owner.items)
        self.near = ui.HTML(layout=ui.Layout(max_height="220px", overflow="auto"))
        self.space = control(ui.Dropdown, options=list(owner.spaces), value=space, description="space", basis=170)
        self.map = control(ui.Dropdown, options=[*METHODS, *owner.extra], value=start, description="map", basis=110)
        self.turn = control(ui.IntSlider, 0, 0, 180, 5, description="turn", basis=150)
        self.turn.continuous_update = count <= GLIDING
        self.xyz = self.placed()
        few: Any = {"opacity": 0.8, "opacity_by": None} if count < 5000 else {}
        self.scatter = jscatter.Scatter(
            *self.seen(self.xyz).T, data=owner.written, height=height, size=6 if count < 5000 else 2, axes=False,
            tooltip=True, tooltip_properties=list(owner.written), tooltip_histograms=False, opacity_unselected=0.4,
            transition_points_duration=600, **few,
        )  # fmt: skip
        self.widget: Any = self.scatter.widget
        self.widget.label_align, self.widget.label_offset, self.widget.label_tile_size = "top", (0, -4), height
        self.draw()
        top = row(self.space, self.map, self.turn)
        self.box = ui.VBox([top, self.widget, self.near], layout=ui.Layout(min_width="0"))
        for made, action in ((self.space, self.move), (self.map, self.move), (self.turn, self.draw)):
            made.observe(action, "value")
        self.widget.observe(lambda change: owner.select(change["new"], self), "selection")
        # jscatter takes the names off whenever the map is moved
        self.widget.observe(lambda _: self.widget.set_trait("labels", self.tags), "label_tiles")

    @property
    def vectors(self) -> np.ndarray:
        """Of the space that is shown (n, d)."""
        return self.owner.spaces[self.space.value]

    def placed(self) -> np.ndarray:
        """The points' positions on the map that is chosen (n, 3)."""
        own = self.owner.extra.get(self.map.value)
        if own is None:
            return maps.coordinates(self.vectors, self.map.value, self.owner.seed)
        return np.pad(own, [(0, 0), (0, 3 - own.shape[1])])

    def seen(self, xyz: np.ndarray) -> np.ndarray:
        """Positions (m, 3) as they are on the screen (m, 2): the third direction is turned into the first."""
        angle = np.deg2rad(self.turn.value)
        return np.stack([np.cos(angle) * xyz[:, 0] + np.sin(angle) * xyz[:, 2], xyz[:, 1]], 1).astype(float)

    def move(self, _: Any = None) -> None:
        """Show another space or map; t-SNE and UMAP take seconds when they are new."""
        self.near.value = f"{html.escape(self.map.value)} of {html.escape(self.space.value)}: one moment …"
        self.xyz = self.placed()
        self.turn.disabled = not self.xyz[:, 2].any()
        self.draw()
        self.owner.compare()

    def draw(self, _: Any = None) -> None:
        """Put the points where they belong, with one scale for both directions."""
        xy = self.seen(self.xyz)
        middle, half = (xy.max(0) + xy.min(0)) / 2, float(np.ptp(xy, axis=0).max()) * 0.53 + 1e-9
        scales = np.stack([middle - half, middle + half], 1).tolist()
        self.scatter.xy(*xy.T, *map(tuple, scales), animate=len(xy) <= GLIDING)
        self.lines()

    def paint(self) -> None:
        """Colour the points by the owner's groups, on the page's background."""
        grouped, dark = self.owner.grouped, self.owner.page.dark
        self.scatter.color(by=grouped.labels, map=grouped.colours(dark), selected=INK[dark])
        self.widget.background_color = to_rgba(BACKGROUND[dark])  # jscatter's own method would bring the axes back
        self.widget.reticle_color = self.widget.tooltip_color = to_rgba(INK[dark])
        self.widget.label_shadow_color = BACKGROUND[dark]
        self.lines()

    def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """The chosen point's neighbours in this space, nearest first, and how alike they are."""
        chosen = self.owner.chosen
        if chosen is None:
            return np.empty(0, int), np.empty(0)
        like = maps.likeness(self.vectors, self.vectors[chosen], self.owner.measure.value)
        near = maps.nearest(like, self.owner.count.value, [chosen])
        return near, like[near]

    def route(self) -> np.ndarray:
        """The followed path up to its step (t, 2): through points, or of vectors on the maps of their space."""
        path, space = self.owner.path[: self.owner.step.value], self.owner.path_space
        if space is None:
            return self.seen(self.xyz[path])
        if space != self.space.value or not len(path):
            return np.empty((0, 2))
        exact = self.map.value == "PCA"
        return self.seen(maps.project(self.vectors, path) if exact else maps.among(path, self.vectors, self.xyz))

    def lines(self) -> None:
        """Draw a line to every neighbour, their names, and the path that is followed."""
        view = self.view()
        drawn = [jscatter.Line(view.xy[[view.chosen, i]].tolist(), line_color=LINE, line_width=2) for i in view.near]
        if len(view.path) > 1:
            drawn.append(jscatter.Line(view.path.tolist(), line_color=INK[self.owner.page.dark], line_width=3))
        self.scatter.annotations(drawn or None)
        named = [] if view.chosen is None else [view.chosen, *view.near]
        size = np.ptp(view.xy, axis=0).max() * np.array([0.22, 0.04])
        self.tags = maps.tags(self.owner.names[named], view.xy[named], size, self.owner.page.dark)
        self.widget.labels = self.tags

    def view(self) -> View:
        """What is seen of it."""
        title = f"{self.space.value} · {self.map.value}"
        return View(title, self.seen(self.xyz), self.owner.chosen, self.neighbours()[0], self.route())


class Explorer(ui.VBox):
    """Maps of the same points in one or several spaces; put it last in a cell.

    Args:
        items: a row a point. The first column names it; all columns are searched, shown, and offered as colours.
        spaces: name -> vectors (n, d), one for each row.
        shown: the spaces of the maps, side by side; the first two when not given.
        start: the map that they begin with, one of `explore_maps.METHODS` or of ``extra``.
        extra: further maps by name, positions (n, 2) or (n, 3): your own axes.
        weight: a column of numbers; what weighs most is listed first and gives clusters their names.
        colour: the column that colours at first; the second column when not given.
        seed: of t-SNE, UMAP and clusters.
        height: of a map, in pixels.

    Raises:
        ValueError: an unknown name, or a space of another length.
    """

    def __init__(
        self, items: pd.DataFrame, spaces: Mapping[str, Any], *, shown: Sequence[str] = (), start: str = "PCA",
        extra: Mapping[str, Any] | None = None, weight: str = "", colour: str = "", seed: int = 0, height: int = 360,
    ) -> None:  # fmt: skip
        self.items, self.seed, self.told = items.reset_index(drop=True), seed, [""]
        self.spaces = {name: maps.array(name, value, len(items)) for name, value in spaces.items()}
        self.extra = {name: maps.array(name, value, len(items)) for name, value in (extra or {}).items()}
        self.written = self.items.apply(maps.written)
        self.names = self.written.iloc[:, 0]
        self.texts = self.names.str.cat(self.written.iloc[:, 1:], sep=" ").str.lower()
        self.weight = self.items[weight].fillna(0).to_numpy(float) if weight else np.zeros(len(items))
        self.selected, self.chosen = np.empty(0, int), None  # type: np.ndarray, int | None
        self.path, self.path_space = np.empty(0, int), None  # type: np.ndarray, str | None
        self.held, self.panes = False, []  # type: bool, list[Pane]
        known("map", start, [*METHODS, *self.extra])
        for space in shown:
            known("space", space, list(self.spaces))
        above = self._controls(colour or str(self.items.columns[1]))
        self.panes = [Pane(self, space, start, height) for space in shown or list(self.spaces)[:2]]
        jscatter.compose([pane.scatter for pane in self.panes], sync_hover=True, row_height=height)
        grid = ui.Layout(grid_template_columns=f"repeat({len(self.panes)}, minmax(0, 1fr))", grid_gap="8px")
        super().__init__([*above, ui.GridBox([pane.box for pane in self.panes], layout=grid)])
        self.add_class("recnb-explorer")
        self.recolour()
        self.look_up()

    def _controls(self, colour: str) -> list[Any]:
        """Make what stands above the maps, and say what each control does."""
        columns = [str(name) for name in self.items.columns[1:] if self.items[name].nunique() > 1]
        choices = [*columns, *(f"clusters of {space}" for space in self.spaces)]
        known("colour", colour, choices)
        self.page, self.legend, self.said = Page(), ui.HTML(), ui.HTML()
        few, hint = len(self.items) <= 10 * GLIDING, "name, year, genre; or /pattern/"
        self.search = control(ui.Text, description="find", placeholder=hint, continuous_update=few)
        self.colour = control(ui.Dropdown, options=choices, value=colour, description="colour")
        self.measure = control(ui.Dropdown, options=list(MEASURES), description="alike by")
        self.count = control(ui.BoundedIntText, 10, min=1, max=50, description="neighbours")
        self.found = ui.Select(rows=7, layout=ui.Layout(width="auto", flex="1 1 220px"))
        self.table = ui.HTML(layout=ui.Layout(flex="3 1 420px", min_width="0", height="122px", overflow="auto"))
        self.step, play = control(ui.IntSlider, 0, 0, 0, description="step"), ui.Play(interval=700, min=1)
        for name in ("value", "max"):
            ui.jslink((self.step, name), (play, name))
        self.player = row(play, self.step, self.said)
        self.player.layout.display = "none"
        buttons = []
        for text, action in (("zoom", self.zoom), ("isolate", self.isolate), ("show all", self.show_all)):
            buttons.append(ui.Button(description=text, layout=ui.Layout(width="90px")))
            buttons[-1].on_click(lambda _, action=action: action())
        self.page.observe(self.recolour, "dark")
        self.found.observe(lambda change: self.select([change["new"]]), "value")
        reactions = [(self.search, self.look_up), (self.colour, self.recolour), (self.step, self.advance)]
        for made, action in (*reactions, (self.measure, self.compare), (self.count, self.compare)):
            made.observe(action, "value")
        rows = row(self.search, self.colour, self.measure, self.count), row(self.found, ui.VBox(buttons), self.table)
        return [self.page, *rows, self.legend, self.player]

    @property
    def rows(self) -> pd.DataFrame:
        """The selected rows of the items, for the next cell."""
        return self.items.iloc[self.selected]

    def recolour(self, _: Any = None) -> None:
        """Colour by the chosen column or by clusters of a space, and write the legend."""
        name = self.colour.value
        if name in self.items:
            self.grouped = maps.groups(self.items[name])
        else:
            space = self.spaces[name.removeprefix("clusters of ")]
            self.grouped = maps.groups(maps.clusters(space, self.names, self.weight, seed=self.seed))
        for pane in self.panes:
            pane.paint()
        self.legend.value = self.grouped.legend(name, self.page.dark)

    def look_up(self, _: Any = None) -> None:
        """List and select what the query finds and choose the first of it; without a query, list what weighs most."""
        query = self.search.value.strip()
        hits = maps.find(self.names, self.texts, query, self.weight)
        listed = hits if query else np.argsort(-self.weight, kind="stable")[:LISTED]
        self.held = True
        self.found.options = [(self.names[row], int(row)) for row in listed[:LISTED]]
        self.found.value = None
        self.held = False
        self.select(hits)
        self.choose(int(hits[0]) if len(hits) else None)

    def select(self, points: Any, source: Pane | None = None) -> None:
        """Select points by number on all maps and list them; one alone is chosen, too.

        Args:
            points: numbers of points, or None.
            source: the map that has them selected already.
        """
        if self.held:
            return
        self.selected = np.asarray([] if points is None else points, dtype=int)
        self.held = True
        for pane in self.panes:
            if pane is not source:
                pane.scatter.selection(self.selected)
        self.held = False
        if len(self.selected) == 1:
            self.choose(int(self.selected[0]))
        told = self.grouped.counted(self.selected) if len(self.selected) else NOTHING
        self.table.value = text_table(self.written.iloc[self.selected[:LISTED]], told)

    def choose(self, point: int | None) -> None:
        """Make a point the one whose neighbours are shown; None: no point."""
        self.chosen = point
        self.compare()

    def compare(self, _: Any = None) -> None:
        """List the chosen point's neighbours under every map, and mark those that all maps have."""
        found = [pane.neighbours() for pane in self.panes]
        shared = set.intersection(*(set(near.tolist()) for near, _ in found)) if len(found) > 1 else set()
        for pane, (near, like) in zip(self.panes, found, strict=True):
            frame = pd.DataFrame({"alike": maps.written(pd.Series(like)), "nearest": self.names.iloc[near].to_numpy()})
            frame["shared"] = ["●" if int(row) in shared else "" for row in near]
            chosen = "" if self.chosen is None else f"{self.names[self.chosen]} in {pane.space.value}"
            pane.near.value = text_table(frame, chosen) if chosen else ""
            pane.lines()

    def zoom(self) -> None:
        """Bring the selected points near."""
        for pane in self.panes:
            pane.scatter.zoom(self.selected if len(self.selected) else None)

    def isolate(self) -> None:
        """Hide what is not selected."""
        for pane in self.panes:
            pane.scatter.filter(self.selected if len(self.selected) else None)

    def show_all(self) -> None:
        """Show everything again, nothing selected."""
        self.select([])
        self.choose(None)
        self.isolate()
        self.zoom()

    def follow(self, path: Any, space: str | None = None, told: Sequence[str] = ()) -> Explorer:
        """Draw a path that can be played step by step.

        Args:
            path: numbers of points (T,), drawn on every map; or vectors (T, d) of a space, drawn on the maps of that
                space, where the nearest points are selected at every step.
            space: of the vectors.
            told: a line of text for every step.
        """
        if space is not None:
            known("space", space, list(self.spaces))
        self.path, self.path_space, self.told = np.asarray(path), space, [*told, *[""] * (len(path) - len(told))]
        self.player.layout.display = ""
        self.step.max = self.step.value = len(self.path)
        self.advance()
        return self

    def advance(self, _: Any = None) -> None:
        """Show the path up to the slider's step."""
        if not len(self.path) or (at := self.step.value - 1) < 0:
            return
        self.said.value = html.escape(self.told[at])
        if self.path_space is None:
            self.select(self.path[: at + 1])
            self.choose(int(self.path[at]))
        else:
            like = maps.likeness(self.spaces[self.path_space], self.path[at], self.measure.value)
            self.select(maps.nearest(like, self.count.value))
            self.choose(None)

    def picture(self) -> Figure:
        """The maps as they are now, for readers without a kernel."""
        return maps.picture([pane.view() for pane in self.panes], self.grouped, self.names, self.selected)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget, and its picture for pages where no widget can be."""
        told = f"Explorer of {len(self.items)} points: {', '.join(pane.view().title for pane in self.panes)}"
        still = {"image/png": maps.png(self.picture()), "text/plain": told}
        return {**super()._repr_mimebundle_(**kwargs), **still}

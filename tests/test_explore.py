import base64
import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from recnb import explore_maps as maps
from recnb import plots
from recnb.explore import Explorer

matplotlib.use("agg")
NASTY = "<img src=x onerror=alert(1)> & $x$"


@pytest.fixture
def films():
    titles = ["Star Wars", "Star Trek", "The Godfather", "The Godfather: Part II", NASTY, "Wars"]
    frame = pd.DataFrame({"title": titles, "year": [1977, 1979, 1972, 1974, np.nan, 1990]})
    return frame.assign(genre=["Action", "Action", "Crime", "Crime", "<b>?</b>", "Drama"], ratings=[9, 5, 8, 7, 1, 2])


@pytest.fixture
def explorer(films):
    rng = np.random.default_rng(0)
    spaces = {"first": rng.normal(size=(6, 4)), "second": torch.randn(6, 3, requires_grad=True)}
    extra = {"own": rng.normal(size=(6, 2))}
    return Explorer(films, spaces, extra=extra, weight="ratings", colour="genre")


def clouds(count=40, dim=8):
    """Three far clouds of points, and which point is of which."""
    rng = np.random.default_rng(1)
    kind = np.arange(3 * count) % 3
    return (rng.normal(size=(3 * count, dim)) + 12 * np.eye(3, dim)[kind]).astype(np.float32), kind


def test_pca_is_that_of_the_definition():
    vectors, _ = clouds()
    found = maps.coordinates(vectors, "PCA")
    centred = vectors - vectors.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(found), np.abs(centred @ axes[:3].T), atol=1e-2)
    assert np.allclose(np.linalg.norm(found, axis=0), sizes[:3], rtol=1e-4)


def test_pca_of_few_directions_is_filled_up():
    found = maps.coordinates(np.random.default_rng(0).normal(size=(5, 2)), "PCA")
    assert found.shape == (5, 3) and not found[:, 2].any() and found[:, :2].any()


@pytest.mark.parametrize("method", ["t-SNE", "UMAP"])
def test_clouds_stay_apart_and_the_map_is_kept(method, monkeypatch):
    vectors, kind = clouds(20)
    xy = maps.coordinates(vectors, method)[:, :2]
    near = [maps.nearest(maps.likeness(xy, xy[i], "distance"), 5, [i]) for i in range(len(xy))]
    assert np.mean(kind[np.array(near)] == kind[:, None]) > 0.95
    monkeypatch.setattr(maps, "_fitted", lambda *given: pytest.fail("fitted again"))
    assert np.array_equal(maps.coordinates(vectors, method)[:, :2], xy)
    with pytest.raises(pytest.fail.Exception):
        maps.coordinates(vectors + 1e-3, method)


def test_more_points_than_are_fitted_are_placed_among_them(monkeypatch):
    monkeypatch.setattr(maps, "FITTED", 60)
    vectors, kind = clouds(60)
    xy = maps.coordinates(vectors, "t-SNE")[:, :2]
    near = [maps.nearest(maps.likeness(xy, xy[i], "distance"), 5, [i]) for i in range(len(xy))]
    assert xy.shape == (180, 2) and np.mean(kind[np.array(near)] == kind[:, None]) > 0.95


def test_likeness_by_hand():
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    assert np.allclose(maps.likeness(vectors, vectors[0], "cosine"), [1, 0, 0.6])
    assert np.allclose(maps.likeness(vectors, vectors[0], "distance"), [0, -(5**0.5), -(20**0.5)])
    moved = vectors - vectors.mean(0)
    cosine = moved @ moved[0] / np.linalg.norm(moved, axis=1) / np.linalg.norm(moved[0])
    assert np.allclose(maps.likeness(vectors, vectors[0]), cosine)


@pytest.mark.parametrize("k", [1, 3, 9, 10, 50])
def test_nearest_is_a_sorted_list_without_what_is_left_out(k):
    like = np.random.default_rng(2).permutation(10).astype(float)
    expected = [i for i in np.argsort(-like) if i != 4][:k]
    assert maps.nearest(like, k, [4]).tolist() == expected


def test_clusters_are_the_clouds_and_bear_the_heaviest_name():
    vectors, kind = clouds()
    names = pd.Series([f"{cloud}-{i}" for i, cloud in enumerate(kind)])
    found = maps.clusters(vectors, names, np.arange(len(kind)), count=3)
    assert set(found) == {"2-119", "1-118", "0-117"}
    assert all(name[0] == str(cloud) for name, cloud in zip(found, kind, strict=True))


def test_numbers_are_grouped_in_equal_ranges():
    made = maps.groups(pd.Series([*range(60), None], dtype=float))
    assert made.names == ["0–9", "10–19", "20–29", "30–39", "40–49", "50–59", "unknown"]
    assert made.ordered and np.bincount(made.code).tolist() == [10] * 6 + [1]


def test_ties_never_stand_in_two_ranges():
    made = maps.groups(pd.Series([1] * 50 + list(range(2, 30))))
    assert len({made.code[i] for i in range(50)}) == 1 and "unknown" not in made.names


def test_words_are_grouped_by_how_frequent_they_are():
    made = maps.groups(pd.Series([letter for i, letter in enumerate("abcdefghij") for _ in range(20 - i)]))
    assert made.names == [*"abcdefg", "other"] and not made.ordered
    assert (made.code == 7).sum() == 13 + 12 + 11


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_told_from_the_page_and_from_each_other(dark):
    for values in (pd.Series(list("abcdefghij")), pd.Series(range(100))):
        made = maps.groups(values)
        colours = made.colours(dark)
        assert len(set(colours)) == len(made.names)
        assert min(maps.contrast(colour, maps.BACKGROUND[dark]) for colour in colours) > 1.8
    shades = [maps.contrast(colour, "#000000") for colour in maps.groups(pd.Series(range(100))).colours(dark)]
    assert shades == sorted(shades)  # lighter with the number: readable without any colour
    assert set(maps.groups(pd.Series(list("abc"))).colours(dark)) <= set(plots.COLOURS)


def test_contrast_is_that_of_web_standards():
    assert maps.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert maps.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("star wars", [0]),
        ("STAR", [0, 1]),
        ("wars", [5, 0]),  # what is called so comes first, however few know it
        ("godfather crime 1974", [3]),
        ("action", [0, 1]),
        ("/^the .*II$/", [3]),
        ("1972", [2]),
        ("nothing like it", []),
        ("", []),
        ("<img", [4]),
    ],
)
def test_search(explorer, query, found):
    explorer.search.value = query
    assert explorer.selected.tolist() == found
    assert explorer.chosen == (found[0] if found else None)
    if query:
        assert [value for _, value in explorer.found.options] == found
    else:
        assert [value for _, value in explorer.found.options][:3] == [0, 2, 3]  # by weight


def test_half_a_pattern_finds_nothing_yet(explorer):
    explorer.search.value = "/(/"
    assert not len(explorer.selected) and explorer.found.options == ()


def test_typing_a_title_changes_neighbours_and_both_maps(explorer):
    explorer.search.value = "godfather"
    first = [pane.near.value for pane in explorer.panes]
    assert "The Godfather in first" in first[0] and "The Godfather in second" in first[1]
    assert all(pane.widget.selection.tolist() == [2, 3] for pane in explorer.panes)
    explorer.search.value = "trek"
    assert all(pane.near.value != before for pane, before in zip(explorer.panes, first, strict=True))


def test_neighbours_are_those_of_their_own_space(explorer):
    explorer.choose(0)
    for pane in explorer.panes:
        near, like = pane.neighbours()
        vectors = pane.vectors - pane.vectors.mean(0)
        cosine = vectors @ vectors[0] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[0])
        assert near.tolist() == [i for i in np.argsort(-cosine) if i != 0]
        assert np.allclose(like, cosine[near], atol=1e-6) and len(pane.widget.annotations) == 5
    explorer.count.value = 2
    assert [len(pane.widget.annotations) for pane in explorer.panes] == [2, 2]


def test_what_both_spaces_hold_near_is_marked(films):
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    same = Explorer(films, {"a": vectors, "b": vectors * 2})
    same.choose(1)
    assert same.panes[0].near.value.count("●") == 5
    alone = Explorer(films, {"a": vectors, "b": vectors}, shown=["a"])
    alone.choose(1)
    assert "●" not in alone.panes[0].near.value


def test_a_lasso_on_one_map_selects_on_the_other_and_fills_the_table(explorer):
    explorer.choose(0)
    explorer.panes[1].widget.selection = np.array([5, 2, 4], dtype="uint32")  # what the page sends
    assert explorer.panes[0].widget.selection.tolist() == [5, 2, 4]
    assert explorer.rows["title"].tolist() == ["Wars", "The Godfather", NASTY]
    assert "3 of 6 selected" in explorer.table.value and explorer.table.value.count("<tr>") == 3
    assert explorer.chosen == 0
    explorer.panes[0].widget.selection = np.array([3], dtype="uint32")  # a click
    assert explorer.chosen == 3 and explorer.panes[1].widget.selection.tolist() == [3]


def test_the_list_is_enough_to_work_without_a_mouse(explorer):
    explorer.search.value = "star"
    explorer.found.value = 1
    assert explorer.selected.tolist() == [1] and explorer.chosen == 1
    assert "Star Trek in first" in explorer.panes[0].near.value


def test_titles_are_text_wherever_they_are_shown(explorer):
    explorer.search.value = "onerror"
    explorer.choose(0)
    shown = explorer.table.value + explorer.legend.value + "".join(pane.near.value for pane in explorer.panes)
    assert "&lt;img" in shown and "<img" not in shown
    assert "&lt;b&gt;" in explorer.legend.value and "<b>?" not in explorer.legend.value
    explorer.follow([0, 4], told=["<i>", "<i>"])
    assert explorer.said.value == "&lt;i&gt;"


def test_tooltips_hold_text_that_any_browser_can_read(explorer):
    for pane in explorer.panes:
        pane.widget.send = sent = []
        pane.widget.send = sent.append
        pane.widget._handle_tooltip({"index": 4, "preview": None, "properties": ["title", "year"]})
        assert json.loads(json.dumps(sent[0], allow_nan=False))["properties"] == {"title": NASTY, "year": ""}


def test_another_map_and_another_space(explorer):
    left = explorer.panes[0]
    left.map.value = "own"
    assert np.allclose(left.xyz[:, :2], explorer.extra["own"]) and left.turn.disabled
    left.space.value = "second"
    left.map.value = "PCA"
    assert np.allclose(left.xyz, maps.coordinates(explorer.spaces["second"], "PCA"))
    assert explorer.panes[1].space.value == "second" and not left.turn.disabled


def test_turning_brings_the_third_direction_to_the_front(explorer):
    left = explorer.panes[0]
    left.turn.value = 90
    assert np.allclose(left.seen(left.xyz), left.xyz[:, [2, 1]], atol=1e-6)
    points = left.widget.points
    assert np.corrcoef(points[:, 0], left.xyz[:, 2])[0, 1] == pytest.approx(1, abs=1e-5)


def test_one_scale_for_both_directions(films):
    long = np.array([[i, 0.1 * (i % 2)] for i in range(6)])
    pane = Explorer(films, {"a": long}, extra={"long": long}, start="long").panes[0]
    assert np.ptp(pane.widget.points[:, 0]) / np.ptp(pane.widget.points[:, 1]) == pytest.approx(50, rel=1e-3)
    assert np.abs(pane.widget.points[:, :2]).max() <= 1


def test_colours_by_column_and_by_cluster(explorer):
    assert explorer.colour.options == ("year", "genre", "ratings", "clusters of first", "clusters of second")
    explorer.colour.value = "ratings"
    assert "ratings" in explorer.legend.value
    assert [
        to_hex(c) for c in explorer.panes[0].widget.color[: len(explorer.grouped.names)]
    ] == explorer.grouped.colours()
    explorer.colour.value = "clusters of first"
    assert set(explorer.grouped.names) <= set(explorer.names)


def test_the_page_may_be_dark(explorer):
    explorer.page.dark = True
    for pane in explorer.panes:
        assert to_hex(pane.widget.background_color) == maps.BACKGROUND[True]
        assert to_hex(pane.widget.color_selected) == maps.INK[True] and not pane.widget.axes
    explorer.page.dark = False
    assert to_hex(explorer.panes[0].widget.background_color) == "#ffffff"


def test_a_path_through_points(explorer):
    explorer.follow([2, 3, 0], told=["one", "two", "three"])
    for pane in explorer.panes:
        assert np.allclose(pane.route(), pane.seen(pane.xyz)[[2, 3, 0]])
    explorer.step.value = 2
    assert explorer.selected.tolist() == [2, 3] and explorer.chosen == 3 and explorer.said.value == "two"
    assert len(explorer.panes[0].route()) == 2


def test_a_path_of_vectors_is_drawn_in_its_own_space(explorer):
    steps = explorer.spaces["first"][[0, 5]] * 0.99
    explorer.count.value = 1
    explorer.follow(steps, "first")
    left, right = explorer.panes
    assert explorer.selected.tolist() == [5] and explorer.chosen is None
    exact = maps.project(explorer.spaces["first"], steps)
    assert np.allclose(left.route(), exact[:, :2], atol=1e-5) and len(right.route()) == 0
    left.map.value = "own"
    assert len(left.route()) == 2 and np.abs(left.route()).max() <= np.abs(explorer.extra["own"]).max()


def test_isolating_and_showing_all(explorer):
    explorer.search.value = "godfather"
    explorer.isolate()
    assert explorer.panes[0].widget.filter.tolist() == [2, 3]
    explorer.show_all()
    assert explorer.panes[0].widget.filter is None and not len(explorer.selected) and explorer.chosen is None


def test_hovering_is_shared(explorer):
    explorer.panes[0].widget.hovering = 3
    assert explorer.panes[1].widget.hovering == 3


def test_a_picture_goes_with_the_widget(explorer):
    explorer.search.value = "onerror"
    shown = explorer._repr_mimebundle_()
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in shown and not plt.get_fignums()
    assert shown["text/plain"] == "Explorer of 6 points: first · PCA, second · PCA"
    figure = explorer.picture()
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert drawn == [plots.plain_text(NASTY)[:24]]
    assert figure.axes[1].get_title() == "second · PCA"
    plt.close(figure)


def test_regions_of_a_brain_by_the_same_code():
    frame = pd.DataFrame({"region": ["A_L", "A_R", "B_L", "B_R"], "side": ["left", "right"] * 2})
    centre = np.array([[0.0, 1, 2], [3, 1, 2], [0, 5, 2], [3, 5, 2]])
    brain = Explorer(frame, {"FC": np.eye(4)}, extra={"from above": centre[:, :2]}, start="from above")
    brain.search.value = "left"
    assert brain.selected.tolist() == [0, 2] and len(brain.panes) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": "TSNE"}, "did you mean 't-SNE'"),
        ({"shown": ["frist"]}, "did you mean 'first'"),
        ({"colour": "genres"}, "did you mean 'genre'"),
        ({"spaces": {"short": np.ones((5, 2))}}, r"\(5, 2\); there are 6 points"),
    ],
)
def test_wrong_names_and_shapes_are_told(films, change, message):
    with pytest.raises(ValueError, match=message):
        Explorer(films, **{"spaces": {"first": np.eye(6)}, **change})


def test_wrong_methods_and_measures_are_told():
    with pytest.raises(ValueError, match="unknown map 'pca'; allowed: PCA, t-SNE, UMAP"):
        maps.coordinates(np.eye(4), "pca")
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        maps.likeness(np.eye(4), np.ones(4), "cosin")


def test_a_hundred_thousand_points_are_drawn_in_seconds():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"name": np.arange(100_000).astype(str), "kind": rng.integers(0, 5, 100_000).astype(str)})
    many = Explorer(frame, {"a": rng.normal(size=(100_000, 16))})
    many.panes[0].widget.selection = np.arange(50_000, dtype="uint32")
    assert "50000 of 100000" in many.table.value and many.table.value.count("<tr>") == 200
    assert len(many._repr_mimebundle_()["image/png"]) < 400_000


def test_names_are_drawn_once_they_cover_no_earlier_one(explorer):
    xy, size = np.array([[0.0, 0], [1, 0], [0, 1], [0.1, 0]]), np.array([2.0, 0.5])
    assert np.allclose(maps.crowding(xy, size), [1, 2, 1, 20])
    assert maps.crowding(np.empty((0, 2)), size).shape == (0,)
    explorer.choose(3)
    left = explorer.panes[0]
    assert left.widget.labels["label"].tolist() == explorer.names[[3, *left.neighbours()[0]]].str[:30].tolist()
    assert set(left.widget.labels["fontColor"]) == {maps.INK[False]}
    left.widget.set_trait("label_tiles", ["1,1,1"])  # as the page does when it is zoomed
    assert len(left.widget.labels) == 6
    explorer.choose(None)
    assert left.widget.labels["label"].tolist() == [" "]

import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from lmseg_jax import charts
from lmseg_jax.errors import UserError

BLUE, ORANGE = (31, 119, 180), (255, 127, 14)  # the first two colours of matplotlib


def near(picture, color):
    """Pixels of about this colour."""
    return int((np.abs(picture.astype(int) - color).max(axis=-1) < 12).sum())


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_names_of_equal_embeddings_are_one_point():
    names, vectors, members = charts.distinct(
        [("Dog", "sky"), ("dog", "sky")],
        [np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [1, 1]])],
    )
    assert names == ["Dog", "sky", "sky"]  # the two skies are read differently
    assert members == [(0, 1), (0,), (1,)]
    np.testing.assert_array_equal(vectors, [[1, 0], [0, 1], [1, 1]])


@pytest.mark.parametrize("count", [3, 24])
def test_near_embeddings_lie_near_each_other(count):
    rng = np.random.default_rng(0)
    centers = np.repeat(np.eye(3, 8) * 5, count // 3, axis=0)
    places = charts.lay_out(centers + 0.1 * rng.normal(size=centers.shape))
    assert places.shape == (count, 2)
    assert places.min() == 0
    assert places.max() == 1
    if count > 3:
        groups = places.reshape(3, -1, 2)
        inside = max(np.ptp(group, axis=0).max() for group in groups)
        middles = groups.mean(axis=1)
        apart = min(np.linalg.norm(middles[i] - middles[i - 1]) for i in range(3))
        assert inside < apart


def test_too_few_names_have_no_picture():
    with pytest.raises(UserError, match="2 different names; a picture of embeddings needs 3"):
        charts.lay_out(np.eye(2))


def test_a_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match=r"pip install 'lmseg_jax\[figures\]'"):
        charts.need_scikit_learn()


def draw(path, names, places, members):
    return charts.names_chart(
        names, places, members=members, taxonomies=("a", "b"), title="t", path=path
    )


def test_a_name_has_a_dot_of_each_of_its_taxonomies(tmp_path):
    places = np.array([[0.1, 0.2], [0.5, 0.5], [0.9, 0.8]])
    names = ["one", "two", "three"]
    for name, members in (("blue", [(0,)] * 3), ("both", [(0,), (0, 1), (0, 1)])):
        assert draw(tmp_path / f"{name}.png", names, places, members) == 0
    blue, both = read(tmp_path / "blue.png"), read(tmp_path / "both.png")
    assert near(blue, BLUE) > 3 * near(blue, ORANGE)  # one orange dot, in the legend
    assert near(both, ORANGE) > near(blue, ORANGE)


def test_names_without_room_are_counted_and_the_others_drawn(tmp_path):
    names = [f"a rather long name {i}" for i in range(120)]
    left_out = draw(tmp_path / "crowd.png", names, np.full((120, 2), 0.5), [(0,)] * 120)
    assert 0 < left_out < 120


def test_costs_show_every_seed_and_the_mean(tmp_path):
    runs = [{"miou": 50.0, "pq": 30.0}, {"miou": 60.0, "pq": None}]
    rows = [
        {"label": "one", "cost": 1e12, "runs": runs},
        {"label": "two", "cost": 1e13, "runs": runs[:1]},
    ]
    for count in (1, 2):
        charts.cost_chart(
            rows[:count],
            scores={"miou": "average mIoU", "pq": "average PQ"},
            cost="cost",
            unit="FLOP",
            path=tmp_path / f"{count}.png",
        )
    one, two = read(tmp_path / "1.png"), read(tmp_path / "2.png")
    assert near(one, BLUE)
    assert not near(one, ORANGE)
    assert near(two, ORANGE)


def test_costs_of_one_method_are_joined_and_labelled_once(tmp_path, monkeypatch):
    lines, labels = [], []
    plot, text = Axes.plot, Axes.text

    def plotted(axes, x, y, **settings):
        lines.append((list(x), list(y)))
        return plot(axes, x, y, **settings)

    def written(axes, x, y, words, **settings):
        labels.append(words)
        return text(axes, x, y, words, **settings)

    monkeypatch.setattr(Axes, "plot", plotted)
    monkeypatch.setattr(Axes, "text", written)
    rows = [
        {"label": "one", "cost": 4e12, "runs": [{"miou": 60.0}]},
        {"label": "two", "cost": 1e12, "runs": [{"miou": 40.0}]},
        {"label": "one", "cost": 1e12, "runs": [{"miou": 50.0}, {"miou": 54.0}]},
        {"label": "one", "cost": 2e12, "runs": []},
    ]
    charts.cost_chart(
        rows, scores={"miou": "mIoU"}, cost="cost", unit="FLOP", path=tmp_path / "lines.png"
    )
    assert ([1e12, 4e12], [52, 60]) in lines
    assert labels == ["one", "two"]


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="none/x.png: cannot write"):
        draw(tmp_path / "none/x.png", ["a"], np.array([[0.5, 0.5]]), [(0,)])

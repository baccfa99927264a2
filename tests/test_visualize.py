import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from lmseg_jax import visualize

COLORS = np.array([[200, 0, 0], [0, 100, 0], [0, 0, 50]], np.uint8)
NAMES = ["red ball", "green field", "deep blue sea"]


def row_of(title="world", *, side=96, seed=0, **changes):
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 3, (2, 2)), np.ones((side // 2, side // 2), int))
    image = rng.integers(0, 256, (side, side, 3), np.uint8)
    row = {"title": title, "image": image, "truth": labels, "prediction": labels}
    return row | {"names": NAMES, "colors": COLORS} | changes


def read(path):
    return np.asarray(Image.open(path))


def holds(picture, color):
    return bool(np.any(np.all(picture == np.array(color), axis=-1)))


def find(picture, part):
    """Whether the picture holds the part, pixel for pixel."""
    match = cv2.matchTemplate(picture.copy(), part.copy(), cv2.TM_SQDIFF)
    y, x = np.unravel_index(match.argmin(), match.shape)
    return np.array_equal(picture[y : y + part.shape[0], x : x + part.shape[1]], part)


def test_labels_take_their_colour_and_void_is_black():
    picture = visualize.colorize(np.array([[0, 2], [-1, -2]]), COLORS)
    np.testing.assert_array_equal(picture, [[[200, 0, 0], [0, 0, 50]], [[0, 0, 0], [0, 0, 0]]])
    assert picture.dtype == np.uint8


def test_an_overlay_mixes_colour_and_image_but_not_in_void():
    image = np.full((1, 2, 3), 100, np.uint8)
    picture = visualize.overlay(image, np.array([[1, -1]]), COLORS, alpha=0.25, edges=False)
    np.testing.assert_array_equal(picture, [[[75, 100, 75], [100, 100, 100]]])


def test_edges_run_between_labels_or_between_given_segments():
    image, labels = np.zeros((3, 4, 3), np.uint8), np.zeros((3, 4), int)
    segments = np.array([[1, 1, 2, 2]] * 3)
    white = np.all(visualize.overlay(image, segments % 3, COLORS) == 255, axis=-1)
    np.testing.assert_array_equal(white, [[False, True, False, False]] * 3)
    assert not holds(visualize.overlay(image, labels, COLORS), (255, 255, 255))
    white = np.all(visualize.overlay(image, labels, COLORS, segments=segments) == 255, axis=-1)
    np.testing.assert_array_equal(white, [[False, True, False, False]] * 3)


def test_enlarging_repeats_pixels():
    np.testing.assert_array_equal(
        visualize.enlarge(np.array([[1, 2]]), 2), [[1, 1, 2, 2], [1, 1, 2, 2]]
    )


def test_a_legend_shows_every_colour_at_any_width():
    heights = []
    for width in (90, 280, 600):
        picture = visualize.legend(NAMES, COLORS, width=width)
        assert picture.shape[1:] == (width, 3)
        assert all(holds(picture, color) for color in COLORS)
        heights.append(picture.shape[0])
    assert heights[0] > heights[1] > heights[2]  # three rows, two, one


def test_a_long_name_stays_inside_its_legend():
    picture = visualize.legend(["a" * 200], COLORS[:1], width=120)
    assert picture.shape[1] == 120
    np.testing.assert_array_equal(picture[:, -4:], 255)


def test_a_legend_of_nothing_is_blank():
    picture = visualize.legend([], np.zeros((0, 3), np.uint8), width=50)
    assert picture.shape[1] == 50
    assert np.all(picture == 255)


def test_a_title_bar_holds_text_of_its_size():
    small, large = (visualize.title_bar("worlds", 300, scale=scale) for scale in (1.0, 2.0))
    assert small.shape[1] == large.shape[1] == 300
    assert large.shape[0] == 2 * small.shape[0]
    assert np.sum(large > 200) > np.sum(small > 200) > 50


def test_a_grid_aligns_pictures_of_unequal_size():
    a, b, c = (np.full((h, w, 3), v, np.uint8) for h, w, v in ((2, 3, 10), (4, 1, 20), (1, 5, 30)))
    picture = visualize.grid([[a, b], [c]], gap=2)
    expected = np.full((4 + 2 + 1, 5 + 2 + 1, 3), 255, np.uint8)
    expected[:2, :3], expected[:4, 7:], expected[6:, :5] = 10, 20, 30
    np.testing.assert_array_equal(picture, expected)


def test_panels_show_small_images_three_times_as_large(tmp_path):
    row = row_of()
    visualize.panels([row], tmp_path / "panels.png")
    picture = read(tmp_path / "panels.png")
    assert find(picture, row["image"].repeat(3, axis=0).repeat(3, axis=1))
    assert all(holds(picture, COLORS[k]) for k in np.unique(row["truth"]))


def test_panels_shrink_large_images(tmp_path):
    large = row_of(side=1000)
    visualize.panels([large], tmp_path / "panels.png")
    assert read(tmp_path / "panels.png").shape[1] < 3 * 640 + 50


def test_panels_give_each_dataset_one_block(tmp_path):
    rows = [row_of("a"), row_of("a", seed=1), row_of("b", seed=2, names=NAMES[:3])]
    visualize.panels(rows, tmp_path / "panels.png")
    picture = read(tmp_path / "panels.png")
    bars = np.all(picture[:, 40] == visualize.INK, axis=-1)  # left of the centred titles
    assert np.sum(bars[1:] > bars[:-1]) == 2


def test_panels_outline_instances_of_one_class(tmp_path):
    labels = np.zeros((96, 96), int)
    segments = np.repeat([[1, 2]], 96, axis=0).repeat(48, axis=1)
    rows = {
        name: row_of(truth=labels, prediction=labels, **more)
        for name, more in {"plain": {}, "outlined": {"prediction_segments": segments}}.items()
    }
    for name, row in rows.items():
        visualize.panels([row], tmp_path / f"{name}.png")
    plain, outlined = (read(tmp_path / f"{name}.png") for name in rows)
    changed = np.argwhere(np.any(plain != outlined, axis=-1))
    assert len(changed) == 288  # one line through the enlarged prediction
    assert len(np.unique(changed[:, 1])) == 1


def test_void_is_listed_where_it_occurs(tmp_path):
    heights = []
    for void in (0, -1):
        truth = np.full((96, 96), void)
        visualize.panels(
            [row_of(truth=truth, prediction=truth * 0, names=["x" * 90] * 3)], tmp_path / "p.png"
        )
        heights.append(read(tmp_path / "p.png").shape[0])
    assert heights[1] > heights[0]  # a fourth entry of the legend is a line more


def test_a_long_legend_lists_only_what_occurs():
    names = [f"class {i}" for i in range(150)]
    colors = np.arange(450, dtype=np.uint16).reshape(150, 3) % 256
    listed, shown = visualize._listed(names, colors, present={3, 77, -1})
    assert listed == ["class 3", "class 77", "(void)"]
    np.testing.assert_array_equal(shown, [[9, 10, 11], [231, 232, 233], [0, 0, 0]])


def test_one_image_is_shown_in_every_taxonomy(tmp_path):
    row = row_of()
    labels = [row["truth"], 2 - row["truth"]]
    colors = [COLORS, np.array([[9, 9, 200], [200, 200, 9]], np.uint8)]
    asked = [
        {"title": "fine", "names": NAMES, "colors": colors[0], "labels": labels},
        {"title": "coarse", "names": NAMES[:2], "colors": colors[1],
         "labels": [x % 2 for x in labels], "segments": labels},
    ]  # fmt: skip
    path = tmp_path / "taxonomies.png"
    visualize.taxonomies([row["image"], row["image"][:, :60]], asked, path=path)
    picture = read(path)
    assert find(picture, row["image"].repeat(3, axis=0).repeat(3, axis=1))
    assert all(holds(picture, color) for color in colors[1])
    assert picture.shape[1] > 3 * 288


@pytest.mark.parametrize(("steps", "wide"), [(0, 1), (3, 3)])
def test_curves_leave_out_charts_without_numbers(tmp_path, steps, wide):
    rows = [{"step": 5, "score/colors/miou": 40.0, "score/colors/pq": None, "rate": None}]
    for step in range(steps):
        rows.append({"step": step, "loss": 3.0, "loss/dice": float("nan"), "rate": 1e-3})
    visualize.curves(rows, tmp_path / "curves.png")
    picture = read(tmp_path / "curves.png")
    assert picture.shape[1] == pytest.approx(wide * 5.2 * 110, abs=2)


def test_curves_of_nothing_are_a_blank_picture(tmp_path):
    visualize.curves([], tmp_path / "curves.png")
    assert np.all(read(tmp_path / "curves.png")[..., :3] == 255)


def test_smoothing_keeps_ends_and_constants():
    np.testing.assert_allclose(visualize._smooth(np.full(100, 7.0)), 7)
    ramp = np.arange(200.0)
    np.testing.assert_allclose(visualize._smooth(ramp), ramp)
    spike = np.zeros(80)
    spike[40] = 5
    np.testing.assert_allclose(visualize._smooth(spike)[37:44], [0, 1, 1, 1, 1, 1, 0])


def test_a_count_of_costs_is_no_curve_of_the_loss(tmp_path, monkeypatch):
    labels, scales = [], []
    plot, scale = Axes.plot, Axes.set_yscale

    def plotted(axes, *data, **settings):
        labels.append(settings.get("label"))
        return plot(axes, *data, **settings)

    def scaled(axes, kind, **settings):
        scales.append((axes.get_title(), kind))
        return scale(axes, kind, **settings)

    monkeypatch.setattr(Axes, "plot", plotted)
    monkeypatch.setattr(Axes, "set_yscale", scaled)
    parts = {"loss/dice": 1.0, "loss/nonfinite": 0.0}
    rows = [{"step": step, "loss": 9.0 / step, **parts} for step in (1, 2)]
    visualize.curves(rows, tmp_path / "curves.png")
    assert set(labels) == {None, "loss", "loss/dice"}
    assert ("loss", "log") in scales  # which a zero would not allow

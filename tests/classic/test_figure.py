"""The picture of an experiment: what is drawn, in which units, and that nothing lies outside or on top."""

import warnings

import matplotlib.image
import numpy as np
import pytest

from marl.classic import figure as module
from marl.classic.experiments.base import Metric
from marl.classic.figure import draw, line
from marl.drawing import COLOURS, new_figure, write_caption

METRICS = {
    "regret": Metric("Regret of the team", "return", "episodes"),
    "front": Metric("Front", "value of agent 1", "value of agent 0", kind="points"),
    "bytes": Metric("Sent", "bytes", "agents", x_scale="log", y_scale="symlog"),
    "hidden": Metric("Hidden", "things", "x", kind="none"),
}


def seeds(*values, x=(0, 1, 2)):
    return {seed: (np.array(x, float), np.array(row, float)) for seed, row in enumerate(values)}


def test_a_line_is_the_mean_and_students_interval_over_seeds():
    found = line(seeds([0, 1, 5], [0, 3, 5]))
    # Two seeds: t with 1 degree is 12.706, the error of (1, 3) is 1: 2 -+ 12.706.
    assert found.mean.tolist() == [0, 2, 5]
    assert found.low == pytest.approx([0, -10.706, 5], abs=1e-3) and found.high == pytest.approx(
        [0, 14.706, 5], abs=1e-3
    )


def test_seeds_measured_at_other_places_are_compared_where_all_have_been():
    of_seeds = {0: (np.array([0.0, 2.0]), np.array([0.0, 4.0])), 1: (np.array([3.0, 1.0]), np.array([3.0, 1.0]))}
    found = line(of_seeds)
    # Common places: 1 and 2. Seed 0 says 2 and 4, seed 1 (recorded backwards) 1 and 2.
    assert found.x.tolist() == [1, 2] and found.mean.tolist() == [1.5, 3]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Calls ``draw`` and gives the figure as well."""
    kept = []
    monkeypatch.setattr(module, "save", lambda figure, out: (kept.append(figure), figure.savefig(out)))

    def call(curves, metrics=METRICS, n=2, command="marl classic toy --seeds 0 1"):
        draw("toy", metrics, curves, n, command, tmp_path / "p.png")
        return kept[-1], tmp_path / "p.png"

    return call


CURVES = {
    ("isolated", "regret"): seeds([0, 2, 3], [0, 3, 5]),
    ("together", "regret"): seeds([0, 1, 1], [0, 1, 2]),
    ("together", "front"): seeds([1, 2, 3], [3, 2, 1]),
    ("isolated", "bytes"): seeds([0, 0, 50], [0, 0, 60], x=(1, 2, 16)),
    ("isolated", "hidden"): seeds([1, 1, 1]),
}


def test_there_is_a_panel_for_each_metric_that_is_shown_with_its_units(drawn):
    figure, _ = drawn(CURVES)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == ["Regret of the team", "Front", "Sent"]
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels] == [
        *(("episodes", "return"), ("value of agent 0", "value of agent 1"), ("agents", "bytes")),
    ]
    assert panels[2].get_xscale() == "log" and panels[2].get_yscale() == "symlog"
    assert [label.get_text() for label in panels[2].get_xticklabels()] == ["1", "2", "16"]


def test_both_axes_have_numbers_where_a_logarithmic_scale_holds_no_power_of_ten(drawn):
    both = Metric("Gap", "value", "updates", x_scale="log", y_scale="log")
    figure, _ = drawn({("a", "gap"): seeds([9, 7, 4], x=(100, 150, 200))}, {"gap": both})
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels(which="both")] == ["100", "150", "200"]
    bottom, top = axes.get_ylim()
    labels = zip(axes.get_yticks(minor=True), axes.get_yticklabels(minor=True), strict=True)
    assert sum(bool(label.get_text()) and bottom <= y <= top for y, label in labels) >= 2


def test_a_band_below_0_does_not_take_half_the_panel_of_a_count(drawn):
    figure, _ = drawn({("a", "bytes"): seeds([0, 10, 900], [0, 90, 990])}, {"bytes": METRICS["bytes"]})
    # At the second place 50 -+ 12.7 * 40 reaches -458; the scale is linear up to 10.
    assert figure.axes[0].get_ylim()[0] == pytest.approx(-2) and figure.axes[0].get_ylim()[1] > 945


def test_whole_numbers_on_an_axis_go_in_steps_of_1_2_or_5(drawn):
    figure, _ = drawn({("a", "regret"): seeds([1, 2], x=(0, 500))}, {"regret": METRICS["regret"]})
    # 500 in nine steps at most: not by 60, which would do, but by 100.
    assert [y for y in figure.axes[0].get_xticks() if 0 <= y <= 500] == [0, 100, 200, 300, 400, 500]


def test_the_caption_has_the_exact_command_and_what_the_band_is(drawn):
    command = "marl classic toy --seeds " + " ".join(map(str, range(60))) + " --drift 0.25"
    figure, _ = drawn(CURVES, command=command)
    text = figure._supxlabel.get_text()
    assert " ".join(text.split()).endswith(command)
    assert "line: mean over seeds; band: Student's 95 % interval of the mean; points: every seed's" in " ".join(
        text.split()
    )


def test_nothing_is_cut_off_and_nothing_lies_on_top_of_something_else(drawn):
    long = {(f"a series with quite a long name {i}", "regret"): seeds([i, i, i], [i, i + 1, i]) for i in range(11)}
    figure, _ = drawn(CURVES | long, command="marl classic toy " + "--an-option with-a-value " * 30)
    renderer = figure.canvas.get_renderer()
    legend, caption = figure.legends[0].get_window_extent(renderer), figure._supxlabel.get_window_extent(renderer)
    panels = [axes.get_tightbbox(renderer) for axes in figure.axes if axes.axison]
    width, height = figure.bbox.size
    for box in (legend, caption, *panels):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    for i, one in enumerate([legend, caption, *panels]):
        for other in [legend, caption, *panels][i + 1 :]:
            assert not one.overlaps(other)


def test_a_series_has_one_colour_in_all_panels_and_one_entry_in_the_legend(drawn):
    figure, path = drawn(CURVES)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["isolated", "together"]
    assert figure.legends[0].get_title().get_text() == "toy (2 seeds)"
    colours = [[shape.get_color() for shape in axes.get_lines()] for axes in figure.axes if axes.axison]
    assert colours == [[COLOURS[0], COLOURS[1]], [COLOURS[1]], [COLOURS[0]]]
    picture = np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    blue = [int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]
    assert (picture == blue).all(-1).sum() > 200


def test_what_is_not_shown_takes_no_colour(drawn):
    figure, _ = drawn({("ghost", "hidden"): seeds([1, 1, 1]), ("seen", "regret"): seeds([1, 2, 3])})
    assert figure.axes[0].get_lines()[0].get_color() == COLOURS[0]


def test_a_symlog_panel_without_a_zero_is_logarithmic_and_one_with_a_zero_shows_it(drawn):
    metric = {"bytes": METRICS["bytes"]}
    figure, _ = drawn({("a", "bytes"): seeds([3, 5, 900])}, metric)
    assert figure.axes[0].get_yscale() == "log"
    figure, _ = drawn({("a", "bytes"): seeds([0, 0.02, 900])}, metric)
    (axes,) = figure.axes
    # 0.02 lies above the linear part, which ends at the power of ten below it.
    assert axes.get_yscale() == "symlog" and axes.yaxis.get_transform().linthresh == pytest.approx(0.01)


def test_a_logarithmic_panel_with_nothing_but_zeros_shows_them_without_a_warning(drawn):
    both = Metric("Gap", "value", "updates", x_scale="log", y_scale="log")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, _ = drawn({("a", "gap"): seeds([0, 0, 0], x=(1, 10, 100))}, {"gap": both}, n=1)
    (axes,) = figure.axes
    bottom, top = axes.get_ylim()
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear") and bottom < 0 < top


def test_one_seed_has_no_band_and_a_single_place_is_still_seen(drawn):
    one = {("a", "regret"): seeds([1], x=(5,)), ("b", "regret"): seeds([2, 3], x=(1, 9))}
    figure, _ = drawn(one, {"regret": METRICS["regret"]}, n=1)
    assert "line: one seed" in figure._supxlabel.get_text()
    (axes,) = figure.axes
    assert sum(shape.get_marker() == "o" for shape in axes.get_lines()) == 2


def test_an_experiment_that_measured_nothing_yet_is_drawn_empty(drawn):
    _, path = drawn({})
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_caption_is_as_wide_as_its_picture():
    for width in (5, 8, 15):
        figure = new_figure(width, 3)
        write_caption(figure, "text", "marl " + "x " * 300)
        box = figure._supxlabel.get_window_extent(figure.canvas.get_renderer())
        assert 0.9 * 150 * width < box.width < 150 * width

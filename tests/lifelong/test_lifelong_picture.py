"""The picture of one lifelong run, on made-up runs."""

import pytest
from lifelong_tools import made_up_run, same
from matplotlib.colors import to_hex

from marl.classic.experiments.base import Drawn
from marl.classic.results import read_results, read_run
from marl.lifelong import picture
from marl.lifelong.experiment import Lifelong

PLAYS = ([0.0, 500.0, 1000.0], [0.0, 4.0, 10.0])
BORROWS = ([200.0, 200.0, 200.0], [0.0, 6.0, 8.0])
AFTER = [[10.0, 0.0], [10.0, 10.0]]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws a made-up run and returns the picture, before it is written, and what is written below it."""

    def draw(learning, **changes):
        said = []
        monkeypatch.setattr(
            picture, "write_caption", lambda figure, text, command: said.append((figure, text, command))
        )
        folder = made_up_run(tmp_path / "run", {team: {0: AFTER, 1: AFTER} for team in learning}, {
            team: {0: each, 1: each} for team, each in learning.items()
        }, same(**changes), seeds=(0, 1), traffic=50.0)  # fmt: skip
        run = read_run(folder)
        Lifelong.draw(read_results(folder), run.options, run.command, tmp_path / "x.png")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
        return said[0]

    return draw


def lines(axes, colour):
    """The curves of that colour, as x and y."""
    return [(shape.get_xdata(), shape.get_ydata()) for shape in axes.get_lines()
            if to_hex(shape.get_color()) == to_hex(colour) and len(shape.get_xdata()) > 2]  # fmt: skip


def test_each_task_has_a_panel_in_which_those_who_play_and_those_who_borrow_are_told_apart(drawn):
    figure, _, command = drawn({"isolated": PLAYS, "shared": BORROWS})
    first, second = figure.axes[:2]
    assert first.get_title(loc="left") == "catch" and second.get_title(loc="left") == "gather"
    ((x, y),) = lines(first, picture.LENT)
    assert x.tolist() == [0, 50, 100] and y.tolist() == [0, 6, 8]
    assert lines(first, picture.ALONE)[0][1].tolist() == [0, 4, 10] and not lines(first, picture.TOGETHER)
    assert command == "marl lifelong made up"


def test_without_agent_time_its_panel_says_so(drawn):
    texts = [
        [text.get_text() for text in axes.texts]
        for axes in drawn({"isolated": PLAYS, "shared": PLAYS}, rounds=3)[0].axes
    ]
    assert texts[3] == ["not defined"] and texts[2] == []  # AT; AR


def test_frames_and_bytes_grow_by_the_round(drawn):
    figure, _, _ = drawn({"isolated": PLAYS, "shared": PLAYS})
    frames, traffic = figure.axes[-2:]
    assert lines(frames, picture.TOGETHER)[0][1].tolist() == [0, 2000, 4000]  # two agents, 1000 frames each
    assert lines(traffic, picture.TOGETHER)[0][1].tolist() == [0, 50, 100] and not lines(traffic, picture.ALONE)


def test_agents_without_a_hub_alone_are_drawn_too(drawn):
    figure, _, _ = drawn({"isolated": PLAYS}, isolated=True, agents=3)
    assert lines(figure.axes[-2], picture.ALONE)[0][1].tolist() == [0, 3000, 6000]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["isolated agents"]


def test_without_ewc_everybody_is_drawn_twice(drawn):
    names = ("isolated", "shared", "isolated, no EWC", "shared, no EWC")
    figure, caption, _ = drawn(dict.fromkeys(names, PLAYS), without_ewc=True)
    assert len(lines(figure.axes[0], picture.TOGETHER)) == 2 and "no EWC" in caption
    assert figure.axes[0].get_ylim() == pytest.approx((-0.8, 10.8))  # 0 to 10 and a margin


def test_the_frame_of_the_experiments_asks_lifelong_for_its_own_picture():
    assert issubclass(Lifelong, Drawn)

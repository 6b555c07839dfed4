"""Learning curves: who is grouped with whom, what the table says, and that the picture shows it."""

import matplotlib.image
import numpy as np
import pytest
import torch

from marl import registry
from marl.config import to_json
from marl.drawing import COLOURS
from marl.log import Recorder
from marl.plot import plot
from marl.runfolder import read_config, write_config
from marl.types import UserError


def make_run(folder, finals, algorithm="maddpg", sweeps=None, config=None, steps=(0, 100, 200), seed=0):
    """A run whose member p ends at ``finals[p]``, in a straight line from 0."""
    folder.mkdir()
    sweeps = sweeps or [{}] * len(finals)
    members = [{"name": f"m{p}", "seed": seed + p, "sweep": sweep} for p, sweep in enumerate(sweeps)]
    config = config or {"gamma": 0.95, "reciprocity": {"kappa": 0.0}}
    content = {"algorithm": algorithm, "environment": "mpe/x", "members": members, "env": {}, "config": config}
    write_config(folder, content)
    recorder = Recorder(folder, [m["name"] for m in members], ["a", "b"])
    for step in steps:
        value = torch.tensor(finals) * step / steps[-1]
        recorder.write(step, {"eval/return_mean": torch.stack([value - 1, value + 1], 1)})
    recorder.close()
    return folder


def test_seeds_with_equal_swept_values_form_a_group_and_the_label_says_the_values(tmp_path):
    sweeps = [{"reciprocity.kappa": k} for k in (0.2, 0.2, 0.5, 0.5)]
    run = make_run(tmp_path / "r", [10.0, 20.0, 1.0, 3.0], sweeps=sweeps)
    path, table = plot([run], tmp_path / "out" / "c.png")
    # Two seeds: the mean; resampled means of (10, 20) are 10, 15, 20 with 1/4, 1/2, 1/4.
    assert table == [
        ("MADDPG, reciprocity.kappa = 0.2", 2, 200, 15.0, 10.0, 20.0, "reward per episode, mean over agents"),
        ("MADDPG, reciprocity.kappa = 0.5", 2, 200, 2.0, 1.0, 3.0, "reward per episode, mean over agents"),
    ]
    assert path == tmp_path / "out" / "c.png" and path.read_bytes().startswith(b"\x89PNG")


def test_the_estimate_of_five_seeds_is_their_iqm(tmp_path):
    _, (row,) = plot([make_run(tmp_path / "r", [0.0, 1.0, 2.0, 3.0, 1000.0])], tmp_path / "c.png")
    assert (row.group, row.n, row.estimate) == ("MADDPG", 5, 2.0)
    assert row.low <= row.estimate <= row.high


def test_a_single_seed_has_no_interval(tmp_path):
    _, (row,) = plot([make_run(tmp_path / "r", [4.0])], tmp_path / "c.png")
    assert row.estimate == 4 and np.isnan(row.low) and np.isnan(row.high)


def test_runs_of_equal_settings_are_pooled_and_others_are_told_apart(tmp_path):
    plain = {"gamma": 0.95, "reciprocity": {"kappa": 0.0}}
    runs = [
        make_run(tmp_path / "a", [1.0], config=plain),
        make_run(tmp_path / "b", [3.0], config=plain, steps=(0, 150, 300), seed=1),
        make_run(tmp_path / "c", [5.0], config=plain | {"reciprocity": {"kappa": 0.5}}),
        make_run(tmp_path / "d", [7.0], algorithm="td3", config=plain | {"delay": 2}),
    ]
    _, table = plot(runs, tmp_path / "c.png")
    assert [(row.group, row.n, row.step) for row in table] == [
        ("MADDPG, reciprocity.kappa = 0.0", 2, 200),  # compared where both have been
        ("MADDPG, reciprocity.kappa = 0.5", 1, 200),
        ("TD3, reciprocity.kappa = 0.0", 1, 200),
    ]
    assert table[0].estimate == pytest.approx((1.0 + 2.0) / 2)  # the longer run has 3 * 200 / 300 there


def test_numbers_of_agents_and_copies_tell_runs_apart(tmp_path, caplog):
    runs = [make_run(tmp_path / name, [value]) for name, value in (("a", 1.0), ("b", 3.0), ("c", 5.0))]
    for run, (agents, copies) in zip(runs, ((3, 1), (6, 1), (3, 4)), strict=True):
        write_config(run, {**read_config(run), "loop": {"agents": agents, "copies": copies}})
    _, table = plot(runs, tmp_path / "c.png")
    assert [(row.group, row.n) for row in table] == [
        ("MADDPG, agents = 3, copies = 1", 1),
        ("MADDPG, agents = 6, copies = 1", 1),
        ("MADDPG, agents = 3, copies = 4", 1),
    ]
    assert caplog.text == ""


def test_the_same_run_named_twice_counts_once(tmp_path):
    run = make_run(tmp_path / "r", [4.0])
    assert plot([run, run], tmp_path / "c.png").table[0].n == 1


def test_a_training_that_two_runs_repeat_counts_once_and_the_log_says_so(tmp_path, caplog):
    """Seed 0 lies in both runs: two seeds in all, not three."""
    runs = [make_run(tmp_path / "a", [4.0]), make_run(tmp_path / "b", [4.0, 6.0])]
    assert plot(runs, tmp_path / "c.png").table[0][1:4] == (2, 200, 5.0)
    assert "seed 0 was trained twice alike" in caplog.text


def test_the_picture_shows_one_colour_per_group(tmp_path):
    sweeps = [{"reciprocity.kappa": k} for k in (0.2, 0.5)]
    path, _ = plot([make_run(tmp_path / "r", [10.0, -10.0], sweeps=sweeps)], tmp_path / "c.png")
    picture = np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(int)

    def pixels(colour):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return (picture == rgb).all(-1).nonzero()[0]

    first, second, third = (pixels(colour) for colour in COLOURS[:3])
    assert len(first) > 500 and len(second) > 500 and len(third) == 0
    assert first.min() < second.min() and first.mean() < second.mean()  # the better group is higher up


def test_a_long_entry_of_the_legend_stands_above_the_curves_and_takes_no_width_from_them(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("marl.plot.save", lambda figure, out: figures.append(figure))
    settings = {f"a_setting_with_a_long_name_{i}": i for i in range(9)}
    runs = [
        make_run(tmp_path / "a", [1.0], config=settings),
        make_run(tmp_path / "b", [3.0], algorithm="td3", config={name: i + 1 for name, i in settings.items()}),
    ]
    plot(runs, tmp_path / "c.png")
    (figure,) = figures
    figure.canvas.draw()
    (axes,), (legend,) = figure.axes, figure.legends
    box, entries = axes.get_window_extent(), legend.get_window_extent()
    assert box.width > 0.8 * figure.bbox.width and box.height > 0.5 * 5 * figure.dpi
    assert entries.y0 > box.y1 and entries.x0 >= 0 and entries.x1 <= figure.bbox.width
    first = legend.get_texts()[0].get_text().replace("\n", " ")
    assert first.startswith("MADDPG, a_setting_with_a_long_name_0 = 0, ") and first.endswith("_8 = 8 (1 seed)")


def test_defaults_in_which_two_algorithms_differ_are_not_named_and_what_was_chosen_is(tmp_path):
    configs = {name: to_json(registry.algorithm(name).Config()) for name in ("maddpg", "mappo")}
    assert configs["maddpg"]["gamma"] != configs["mappo"]["gamma"]
    runs = [make_run(tmp_path / name, [1.0], algorithm=name, config=config) for name, config in configs.items()]
    assert [row.group for row in plot(runs, tmp_path / "c.png")[1]] == ["MADDPG", "MAPPO"]
    with_peers = {**configs["mappo"], "reciprocity": {**configs["mappo"]["reciprocity"], "kappa": 0.5}}
    runs[1] = make_run(tmp_path / "peers", [1.0], algorithm="mappo", config=with_peers)
    labels = [row.group for row in plot(runs, tmp_path / "c.png")[1]]
    assert labels == ["MADDPG, reciprocity.kappa = 0.0", "MAPPO, reciprocity.kappa = 0.5"]


def test_settings_that_only_one_of_two_environments_has_are_not_named(tmp_path):
    runs = [make_run(tmp_path / "a", [1.0]), make_run(tmp_path / "b", [3.0])]
    write_config(runs[1], {**read_config(runs[1]), "environment": "gym/y", "env": {"frame_skip": 4}})
    _, table = plot(runs, tmp_path / "c.png")
    assert [row.group for row in table] == ["MADDPG, mpe/x", "MADDPG, gym/y"]


def test_the_caption_is_the_command_even_where_a_name_has_a_space(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("marl.plot.write_caption", lambda figure, text, command: said.append(command))
    plot([make_run(tmp_path / "my run", [10.0])], tmp_path / "c.png")
    assert said == [f"marl plot '{tmp_path / 'my run'}' --metric eval/return_mean"]


def test_a_run_that_is_still_writing_can_be_plotted(tmp_path):
    run = make_run(tmp_path / "r", [4.0])
    with (run / "metrics.csv").open("a") as file:
        file.write('300,m0,eval/return_mean,,"reward per epis')
    assert plot([run], tmp_path / "c.png").table[0].step == 200


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x80\x00\n",
        b'2\xff0,m0,eval/return_mean,,"reward per episode",4.0\n',
        b'100,m0,eval/return_mean,,"reward per episode",4.\xff\n',
        b'100,m0,eval/return_mean,,"reward per epi\n',
        b"x" * 140_000 + b"\n",
    ],
)
def test_damaged_rows_are_passed_over(damage, tmp_path):
    run = make_run(tmp_path / "r", [4.0])
    head, *lines = (run / "metrics.csv").read_bytes().splitlines(keepends=True)
    (run / "metrics.csv").write_bytes(head + b"".join(damage + line for line in lines))
    (row,) = plot([run], tmp_path / "c.png").table
    assert (row.step, row.estimate) == (200, 4.0)


def test_a_run_that_never_evaluates_names_a_metric_that_it_has(tmp_path):
    run = make_run(tmp_path / "r", [4.0])
    write_config(run, read_config(run) | {"loop": {"eval_every": 0}})
    (run / "metrics.csv").write_text("step,member,metric,agent,unit,value\n")
    with pytest.raises(UserError, match=r"records no eval/return_mean, with --eval-every 0; .* --metric train/return_"):
        plot([run], tmp_path / "c.png")


@pytest.mark.parametrize("gathered", [False, True])
def test_what_workers_that_share_a_run_have_recorded_is_drawn_before_and_after_it_is_gathered(gathered, tmp_path):
    """Member m0 is in part 0 and m1 in part 1, which no worker has begun; what was gathered ends at step 100."""
    run = make_run(tmp_path / "r", [1.0, 2.0], steps=(0, 100))
    write_config(run, read_config(run) | {"parts": {"0": ["m0"], "1": ["m1"]}})
    (run / "parts").mkdir()
    make_run(run / "parts" / "0", [4.0])
    if not gathered:
        (run / "metrics.csv").unlink()
    (row,) = plot([run], tmp_path / "c.png").table
    assert (row.n, row.step, row.estimate) == (1, 200, 4.0)


@pytest.mark.filterwarnings("error")
def test_letters_that_the_font_lacks_are_no_matter_for_the_terminal(tmp_path):
    run = make_run(tmp_path / "\u65e5\u672c", [4.0])
    assert plot([run], tmp_path / "c.png").path.exists()


def test_the_caption_spells_out_a_name_that_is_no_unicode(tmp_path):
    run = make_run(tmp_path / "caf\udce9", [1.0])  # an old folder's name, in Latin-1
    assert plot([run], tmp_path / "p.png").path.exists()


def test_numbers_that_cannot_be_read_are_one_line(tmp_path):
    run = make_run(tmp_path / "run", [1.0])
    (run / "metrics.csv").unlink()
    (run / "metrics.csv").mkdir()
    with pytest.raises(UserError, match=r"run/metrics\.csv cannot be read: Is a directory$"):
        plot([run], tmp_path / "p.png")


def test_trouble_is_one_line_that_names_the_nearest_choice(tmp_path):
    run = make_run(tmp_path / "r", [4.0])
    with pytest.raises(UserError, match="no metric 'eval/return'; did you mean 'eval/return_"):
        plot([run], tmp_path / "c.png", metric="eval/return")
    with pytest.raises(UserError, match="has not recorded loss/actor yet"):
        plot([run], tmp_path / "c.png", metric="loss/actor")
    with pytest.raises(UserError, match="holds no run"):
        plot([tmp_path / "none"], tmp_path / "c.png")
    late = make_run(tmp_path / "late", [4.0], steps=(900, 1000), seed=1)
    with pytest.raises(UserError, match="no step in common"):
        plot([run, late], tmp_path / "c.png")

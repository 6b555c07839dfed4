"""Rows in files: in order, whole, the same after a resume; and what is made of them."""

import csv
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_experiment import Toy, ToyOptions

from marl.classic.experiments.base import Finding, Metric, Row
from marl.classic.results import SeedLog, merge, read_results, shared, summarise
from marl.types import UserError

METRICS = {"regret": Metric("Regret", "return", "episodes"), "gap": Metric("Gap", "value", "k / n")}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def scalars(folder, series, seed, tag):
    path = folder / "tensorboard" / series / f"seed={seed}"
    return [(e.step, e.value) for e in EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload().Scalars(tag)]


def test_rows_are_written_with_unit_and_bits_and_seen_at_once(tmp_path):
    log = SeedLog(tmp_path, 3, METRICS)
    log.write([Row("a, b", "regret", 10, 0.1), Row("c", "gap", 0.25, np.float64(1 / 3))])
    assert rows(tmp_path / "seeds" / "3.csv") == [
        ["seed", "series", "metric", "unit", "x", "value"],
        ["3", "a, b", "regret", "return", "10", "0.1"],
        ["3", "c", "gap", "value", "0.25", "0.3333333333333333"],
    ]
    log.close()


def test_tensorboard_has_one_run_for_each_series_and_seed_and_the_unit_in_the_tag(tmp_path):
    log = SeedLog(tmp_path, 3, METRICS)
    log.write([Row("a/b", "regret", 10, 1.0), Row("c", "regret", 10, 2.0), Row("a/b", "regret", 20, 3.0)])
    log.close()
    assert scalars(tmp_path, "a-b", 3, "regret [return]") == [(10, 1.0), (20, 3.0)]
    assert scalars(tmp_path, "c", 3, "regret [return]") == [(10, 2.0)]


def test_places_between_whole_numbers_become_tensorboard_steps_that_rise(tmp_path):
    log = SeedLog(tmp_path, 0, METRICS)
    log.write([Row("a", "gap", x, x) for x in (0.0, 0.25, 0.5, 1.0, 9.6, 2.0)])
    log.close()
    # 0 -> 0; 0.25, 0.5 and 1 round to steps that are taken: 1, 2, 3; 9.6 -> 10; 2 is behind: 11.
    assert [step for step, _ in scalars(tmp_path, "a", 0, "gap [value]")] == [0, 1, 2, 3, 10, 11]


def test_what_came_after_the_checkpoint_is_forgotten_in_both_files(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        log = SeedLog(folder, 0, METRICS)
        log.write([Row("a", "regret", 1, 0.5), Row("a", "gap", 9, 7.0)])
        size, checksum = log.sync()
        log.write([Row("a", "regret", 2, 0.25)])
        if folder is broken:
            with (folder / "seeds" / "0.csv").open("ab") as file:
                file.write(b"0,a,reg")
            log = SeedLog(folder, 0, METRICS, size, checksum)
            log.write([Row("a", "regret", 2, 0.25)])
        log.close()
    assert (whole / "seeds" / "0.csv").read_bytes() == (broken / "seeds" / "0.csv").read_bytes()
    for tag, points in {"regret [return]": [(1, 0.5), (2, 0.25)], "gap [value]": [(9, 7.0)]}.items():
        assert scalars(whole, "a", 0, tag) == scalars(broken, "a", 0, tag) == points


def test_a_file_that_lost_its_past_is_refused(tmp_path):
    SeedLog(tmp_path, 0, METRICS).close()
    with pytest.raises(UserError, match=r"0\.csv lacks rows of its past"):
        SeedLog(tmp_path, 0, METRICS, 10_000)


@pytest.mark.parametrize("before, after", [("0.5", "0.6"), ("0.5", "0x5"), ("regret", "regres"), ("a,", "b,")])
def test_a_file_whose_past_was_changed_is_refused(tmp_path, before, after):
    log = SeedLog(tmp_path, 0, METRICS)
    log.write([Row("a", "regret", 1, 0.5)])
    mark = log.sync()
    log.close()
    path = tmp_path / "seeds" / "0.csv"
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(UserError, match=r"0\.csv fails its checksum$"):
        SeedLog(tmp_path, 0, METRICS, *mark)


def test_an_unknown_metric_is_a_programming_error(tmp_path):
    with pytest.raises(KeyError, match="regrets"):
        SeedLog(tmp_path, 0, METRICS).write([Row("a", "regrets", 0, 0)])


def log_of(folder, seed, xs, values, series="a"):
    log = SeedLog(folder, seed, METRICS)
    log.write([Row(series, "regret", x, value) for x, value in zip(xs, values, strict=True)])
    log.close()


def test_seeds_are_merged_in_ascending_order_under_one_head(tmp_path):
    for seed in (10, 2):
        log_of(tmp_path, seed, [1, 2], [seed, seed + 0.5])
    merge(tmp_path, [10, 2])
    text = (tmp_path / "results.csv").read_text()
    assert [line.split(",")[0] for line in text.splitlines()] == ["seed", "2", "2", "10", "10"]
    table = shared(read_results(tmp_path), [10, 2])
    x, values = table["a", "regret"]
    assert x.tolist() == [1, 2] and values.tolist() == [[2, 2.5], [10, 10.5]]


def test_curves_that_a_seed_lacks_or_has_elsewhere_are_not_in_the_table(tmp_path):
    log_of(tmp_path, 0, [1, 2], [0, 0])
    log_of(tmp_path, 1, [1, 3], [0, 0])
    merge(tmp_path, [0, 1])
    assert shared(read_results(tmp_path), [0, 1]) == {}
    log_of(tmp_path, 1, [1, 2], [0, 0], series="b")
    merge(tmp_path, [0, 1])
    assert shared(read_results(tmp_path), [0, 1]) == {}


@pytest.mark.parametrize("text", ["", "a,b\n", "seed,series,metric,unit,x,value\n0,a,regret,return,1\n", "\x00"])
def test_a_damaged_table_is_one_line_that_says_how_to_mend_it(tmp_path, text):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(UserError, match=r"results\.csv is damaged; delete it, and marl resume .* makes it again"):
        read_results(tmp_path)


def change(text, harm):
    """The table after some harm to it."""
    if harm == "quote":
        return text.replace("b,regret", 'b,"regret')
    if harm == "name":
        return text.replace("b,regret", "c,regret", 1)
    return "".join(text.splitlines(keepends=True)[:-harm])


@pytest.mark.parametrize("harm", [1, 2, 3, 4, "quote", "name"])
def test_a_table_that_lost_rows_or_names_is_not_taken_for_whole(tmp_path, harm):
    """Two seeds with two rows each: cut at a line end a table can still be read, and lacks a whole curve or seed."""
    for seed in (0, 1):
        log_of(tmp_path, seed, [1, 2], [0, 0], series="b")
    merge(tmp_path, [0, 1])
    read_results(tmp_path)
    path = tmp_path / "results.csv"
    path.write_text(change(path.read_text(), harm))
    with pytest.raises(UserError, match=r"results\.csv is damaged; delete it, and marl resume .* makes it again"):
        read_results(tmp_path)


def test_a_stray_quote_in_a_long_table_is_a_damaged_table(tmp_path):
    """40 000 rows of 20 bytes: the quoted field is longer than the 131 072 bytes that csv reads."""
    head, row = "seed,series,metric,unit,x,value\n", "0,a,regret,return,1,2\n"
    (tmp_path / "results.csv").write_text(head + '0,"a,regret,return,1,2\n' + 40_000 * row)
    with pytest.raises(UserError, match=r"results\.csv is damaged"):
        read_results(tmp_path)


def test_without_the_seeds_files_the_table_is_all_there_is(tmp_path):
    log_of(tmp_path, 0, [1, 2], [0, 0])
    merge(tmp_path, [0])
    shutil.rmtree(tmp_path / "seeds")
    assert list(read_results(tmp_path)) == [("a", "regret")]


class Said(Toy):
    """Two findings: 1, 2, 3 and one number."""

    @staticmethod
    def findings(table, options):
        return [Finding("three", np.array([1.0, 2.0, 3.0]), "metres"), Finding("one", np.array([4.0]), "")]


def test_a_finding_is_the_mean_of_its_seeds_with_students_interval(tmp_path):
    three, one = summarise(Said, ToyOptions(), {}, [0, 1, 2], tmp_path)
    # The deviation of 1, 2, 3 is 1, its error 1 / sqrt(3) = 0.5774, Student's t with 2 degrees 4.3027: 2 -+ 2.484.
    assert three == ("three", 2.0, pytest.approx(-0.484, abs=1e-3), pytest.approx(4.484, abs=1e-3), "metres", 3)
    assert one.mean == 4 and np.isnan(one.low) and np.isnan(one.high) and one.seeds == 1
    assert rows(tmp_path / "findings.csv")[0] == ["name", "mean", "low", "high", "unit", "seeds"]
    assert rows(tmp_path / "findings.csv")[2] == ["one", "4.0", "nan", "nan", "", "1"]

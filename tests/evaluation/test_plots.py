"""The pictures are PNG files that show the numbers given, and leave no trace of having been drawn."""

import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from tasks.evaluation.plots import (
    LEAST_ENERGY_SHOWN,
    Curve,
    coverage_and_energy,
    ladders_of,
    prefix_ladder,
    quality_by_bytes,
)
from tasks.rounds.records import RoundRecord

LADDERS = {f"round {r}": {2: 0.1 * r, 4: 0.2 * r, 16: 0.3 * r} for r in (1, 2, 3)}
CURVES = {"one": Curve((10, 2000), (0.1, 0.5)), "other": Curve((), ())}
PICTURES = {
    "quality_by_bytes": lambda: quality_by_bytes(CURVES, "accuracy"),
    "prefix_ladder": lambda: prefix_ladder(LADDERS, "accuracy"),
    "coverage_and_energy": lambda: coverage_and_energy([1.0, 0.5, 0.5], [0.9, 0.1, 0.0]),
}


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figures that are written, to look at what they show."""
    figures, save = [], Figure.savefig

    def savefig(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def read(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    return picture


@pytest.mark.parametrize("name", PICTURES)
def test_equal_inputs_give_equal_pictures_with_something_in_them(name):
    png = PICTURES[name]()
    assert png == PICTURES[name]()
    assert np.asarray(read(png).convert("L")).std() > 5


@pytest.mark.parametrize("name", PICTURES)
def test_plotting_leaves_pyplot_alone(name):
    from matplotlib import pyplot as plt
    from matplotlib import rcParams

    before, settings = plt.get_fignums(), dict(rcParams)
    PICTURES[name]()
    assert (plt.get_fignums(), dict(rcParams)) == (before, settings)


@pytest.mark.parametrize("name", ["prefix_ladder", "coverage_and_energy"])
def test_pictures_of_ranks_are_readable_at_phone_width(name, drawn):
    read(PICTURES[name]())
    (figure,) = drawn
    texts = [text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels())]
    # A phone is 400 points wide: text there keeps at least 9 of them in height.
    scale = 400 / (72 * figure.get_figwidth())
    assert min(text.get_fontsize() for text in texts if text.get_text()) * scale >= 9


def test_ladder_shows_every_rank_and_emphasises_the_last_line(drawn):
    prefix_ladder(LADDERS, "macro_f1")
    (axes,) = drawn[0].axes
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == list(LADDERS)
    for line, ladder in zip(lines, LADDERS.values(), strict=True):
        assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == ladder
    *others, last = lines
    assert last.get_linewidth() > max(line.get_linewidth() for line in others)
    assert len({line.get_color() for line in lines}) == len(lines)
    assert [text.get_text() for text in axes.texts] == ["0.300", "0.900"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "4", "16"]
    assert axes.get_ylabel() == "test macro f1"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(LADDERS)


def test_ladder_sorts_ranks_and_labels_ends_on_the_free_side(drawn):
    prefix_ladder({"falling": {16: 0.1, 2: 0.5, 8: 0.3}}, "accuracy")
    (axes,) = drawn[0].axes
    assert list(axes.get_lines()[0].get_xdata()) == [2, 8, 16]
    assert [(text.get_text(), text.get_va()) for text in axes.texts] == [("0.500", "bottom"), ("0.100", "top")]


def test_ladder_of_many_ranks_keeps_its_numbers_apart(drawn):
    prefix_ladder({"all": dict.fromkeys(range(1, 65), 0.5)}, "accuracy")
    (axes,) = drawn[0].axes
    boxes = [text.get_window_extent() for text in axes.get_xticklabels()]
    assert {"1", "64"} <= {text.get_text() for text in axes.get_xticklabels()}
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize("ladders", [{}, {"empty": {}}, {"single": {8: 0.5}}, {"a": {4: 0.5}, "b": {}}])
def test_ladders_of_little_are_drawn_all_the_same(ladders, drawn):
    read(prefix_ladder(ladders, "loss"))
    (axes,) = drawn[0].axes
    assert len(axes.get_lines()) == len(ladders)


def test_coverage_and_energy_are_drawn_as_given(drawn):
    coverage, energy = [1.0, 0.5, 0.25], [0.9, 0.1 - 1e-8, LEAST_ENERGY_SHOWN / 100]
    coverage_and_energy(coverage, energy)
    above, below = drawn[0].axes
    assert [bar.get_height() for bar in above.patches] == coverage
    assert [bar.get_x() + bar.get_width() / 2 for bar in above.patches] == pytest.approx([1, 2, 3])
    assert [bar.get_height() for bar in below.patches] == pytest.approx([*energy[:2], float("nan")], nan_ok=True)
    assert ["no bar" in text.get_text() for text in below.texts] == [True]
    assert below.get_ylim()[0] == LEAST_ENERGY_SHOWN


def test_a_picture_without_empty_slots_says_nothing_about_them(drawn):
    coverage_and_energy([1.0, 0.5], [0.9, 0.1])
    assert not drawn[0].axes[1].texts


@pytest.mark.parametrize(("coverage", "energy"), [([], []), ([1.0], []), ([1.0], [0.5, 0.5]), ([1.0], [0.0])])
def test_slots_of_little_are_drawn_all_the_same(coverage, energy, drawn):
    read(coverage_and_energy(coverage, energy))
    above, below = drawn[0].axes
    assert (len(above.patches), len(below.patches)) == (len(coverage), len(energy))


def rounds_with(*figures):
    """Build a run's records with these figures, round 0 first."""
    return [
        RoundRecord(run_id="digits-1", round_index=i, outcome="committed", models={}, ranks={}, metrics=metrics)
        for i, metrics in enumerate(figures)
    ]


RUNGS = st.dictionaries(st.integers(1, 15), st.floats(0, 1), max_size=3)
FIGURES = st.tuples(RUNGS, st.none() | st.floats(0, 1))  # rank -> quality of the cut, and that of the whole


@given(st.lists(FIGURES, max_size=9))
def test_ladders_are_those_of_the_first_middle_and_last_round_judged_at_several_ranks(run):
    named = [
        {f"accuracy_at_rank_{rank:03d}": value for rank, value in rungs.items()}
        | ({} if whole is None else {"accuracy": whole})
        for rungs, whole in run
    ]
    several = [i for i, (rungs, whole) in enumerate(run) if rungs and whole is not None]
    shown = sorted({several[0], several[len(several) // 2], several[-1]}) if several else []
    found = ladders_of(rounds_with(*named), "accuracy", 16)
    assert list(found) == [f"round {i}" for i in shown]
    assert [found[f"round {i}"] for i in shown] == [{**run[i][0], 16: run[i][1]} for i in shown]


def test_ladders_leave_out_other_figures_and_those_of_single_clusters():
    figures = {"accuracy": 0.5, "accuracy_at_rank_002": 0.25}
    others = {
        "loss": 9.0,
        "loss_at_rank_002": 9.0,
        "accuracy_cluster_1": 9.0,
        "accuracy_at_rank_002_cluster_1": 9.0,
        "client_validation_accuracy": 9.0,
    }
    records = rounds_with({}, figures | others)
    assert ladders_of(records, "accuracy", 8) == {"round 1": {2: 0.25, 8: 0.5}}
    assert ladders_of(records, "loss", 8) == {"round 1": {2: 9.0, 8: 9.0}}
    assert ladders_of(records, "macro_f1", 8) == {}


def test_ladders_of_a_run_can_be_drawn(drawn):
    run = rounds_with(*({"accuracy": 0.1 * i, "accuracy_at_rank_004": 0.05 * i} for i in range(1, 8)))
    prefix_ladder(ladders_of(run, "accuracy", 8), "accuracy")
    assert [line.get_label() for line in drawn[0].axes[0].get_lines()] == ["round 0", "round 3", "round 6"]


@pytest.mark.parametrize(("last", "scale"), [(9_000_000, "linear"), (11_000_000, "log")])
def test_bytes_go_by_factors_where_runs_differ_by_more_than_ten_times(drawn, last, scale):
    curves = {"small": Curve((500_000, 1_000_000), (0.1, 0.5)), "large": Curve((1_000_000, last), (0.2, 0.6))}
    quality_by_bytes(curves, "accuracy")
    assert drawn[0].axes[0].get_xscale() == scale

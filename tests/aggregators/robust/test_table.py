"""The table of robust rules is consistent, and refuses names and values it does not know."""

import pickle

import pytest

from tasks.aggregators.robust.table import ROBUST_RULES, robust_rule
from tasks.errors import ConfigError, UnknownNameError
from tests.aggregators.robust.cases import neighbours


def test_table_names_its_rows():
    assert {name: row.name for name, row in ROBUST_RULES.items()} == {name: name for name in ROBUST_RULES}
    assert all(row.title and row.paper.startswith("https://") for row in ROBUST_RULES.values())
    assert all(option.description for row in ROBUST_RULES.values() for option in row.options)


def test_defaults_of_options_are_those_of_the_rules():
    updates, weights = neighbours(6), [1.0] * 6
    for row in ROBUST_RULES.values():
        by_table, by_hand = row.start()(updates, weights), row.screen()(updates, weights)
        assert by_table.weights == by_hand.weights
        assert by_table.notes == by_hand.notes
        assert row.fewest_updates() == (row.fewest() if row.fewest else 1)


def test_options_reach_the_rule():
    updates = neighbours(7)
    assert len(robust_rule("multi_krum").start({"num_selected": 2})(updates, [1.0] * 7).updates) == 2
    assert robust_rule("multi_krum").fewest_updates({"num_attackers": 3, "num_selected": 8}) == 11
    assert robust_rule("krum").fewest_updates({"num_attackers": 2}) == 7
    assert robust_rule("geometric_median").fewest_updates() == 1


def test_a_cohort_one_short_of_the_fewest_is_refused():
    for row in ROBUST_RULES.values():
        fewest = row.fewest_updates()
        assert row.start()(neighbours(fewest), [1.0] * fewest).updates
        if fewest > 1:
            with pytest.raises(ConfigError, match=f"expected {fewest}"):
                row.start()(neighbours(fewest - 1), [1.0] * (fewest - 1))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("norm_clip", {"factor": 0.5}),
        ("trimmed_mean", {"trim_frac": 0.5}),
        ("krum", {"num_attackers": 1.5}),
        ("geometric_median", {"smoothing": 0.0}),
        ("coordinate_median", {"factor": 1.0}),
    ],
)
def test_values_out_of_bounds_and_foreign_options_are_refused(name: str, values: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(values))):
        robust_rule(name).start(values)


def test_unknown_rule_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="coordinate_median, geometric_median, krum"):
        robust_rule("bulyan")


def test_rows_and_rules_survive_pickling():
    for row in ROBUST_RULES.values():
        assert pickle.loads(pickle.dumps(row)) == row  # noqa: S301 - our own bytes
        pickle.loads(pickle.dumps(row.start()))  # noqa: S301 - our own bytes

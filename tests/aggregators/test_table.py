"""The table is consistent, and `aggregate` names whatever is wrong with what it was given."""

import pickle

import pytest
import torch

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators import AGGREGATORS, aggregate, aggregator
from tasks.errors import EmptyCohortError, InvalidWeightError, NonFiniteUpdateError, UnknownNameError
from tests.aggregators.cases import ORACLES, client, same_bits, suited, tiny_cohort


def test_table_names_its_rows_and_has_an_oracle_for_each():
    assert {name: row.name for name, row in AGGREGATORS.items()} == {name: name for name in ORACLES}
    assert all(row.title and row.paper.startswith("https://") for row in AGGREGATORS.values())


def test_every_row_starts_a_fold_of_its_own():
    updates, weights = tiny_cohort(3, max_rank=1)
    for row in AGGREGATORS.values():
        first, second = row.start(), row.start()
        first.add(0, suited(row, updates)[0], weights[0])
        with pytest.raises(EmptyCohortError):
            second.finish(None)


def test_share_of_a_slice_method_is_the_first_slots():
    whole = client({"m": 4}, 1)
    for row in AGGREGATORS.values():
        if row.downlink == "slice":
            assert torch.equal(row.share(whole, {"m": 2}).pairs["m"].a, whole.pairs["m"].a[:2])


def test_slots_are_kept_where_no_svd_and_no_seed_makes_them_anew():
    anew = {"flexlora", "raflora", "raflora_canonical", "delta_svd", "flora_stack"}
    assert {name for name, row in AGGREGATORS.items() if not row.keeps_slots} == anew


def test_unknown_name_error_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"delta_svd, fed_sb, fedavg, .*rbla, zero_pad"):
        aggregator("rabla")
    with pytest.raises(UnknownNameError, match="rabla"):
        aggregate("rabla", *tiny_cohort(2))


def test_no_updates_is_an_error():
    with pytest.raises(EmptyCohortError):
        aggregate("rbla", [], [])


@pytest.mark.parametrize("bad", [0.0, -2.0, float("nan"), float("inf")])
def test_bad_weight_names_its_update(bad: float):
    updates, _ = tiny_cohort(3)
    with pytest.raises(InvalidWeightError, match="update 1"):
        aggregate("rbla", updates, [1.0, bad, 1.0])


def test_number_of_weights_must_match():
    updates, weights = tiny_cohort(3)
    with pytest.raises(InvalidWeightError, match="got 2; expected 3"):
        aggregate("rbla", updates, weights[:2])


def test_weights_that_overflow_are_refused():
    updates, _ = tiny_cohort(2)
    with pytest.raises(InvalidWeightError, match="add up to infinity"):
        aggregate("rbla", updates, [1e308, 1e308])


def test_weights_of_any_size_count_by_their_ratio():
    updates, _ = tiny_cohort(2)
    tiny = aggregate("rbla", updates, [2.0**-1000, 2.0**-999])
    assert same_bits(tiny, aggregate("rbla", updates, [1.0, 2.0]))


def test_non_finite_error_names_update_and_tensor():
    updates, weights = tiny_cohort(3)
    updates[1].pairs["m"].b[0, 0] = float("nan")
    with pytest.raises(NonFiniteUpdateError, match="update 1, tensor m factor b"):
        aggregate("rbla", updates, weights)


def test_finite_numbers_whose_sum_overflows_are_no_error():
    huge = LoraAdapter({}, {"x": torch.full((4,), 3e38)})
    assert torch.equal(aggregate("rbla", [huge, huge], [1.0, 1.0]).dense["x"], huge.dense["x"])


def test_rows_survive_pickling():
    for row in AGGREGATORS.values():
        assert pickle.loads(pickle.dumps(row)) == row  # noqa: S301 - our own bytes

"""Every aggregator of the table keeps every law its row promises."""

from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.adapters.lora import LoraAdapter
from tasks.aggregators.cohort import aggregate
from tasks.aggregators.fold import Fold
from tasks.aggregators.ordered import BLOCK
from tasks.aggregators.table import AGGREGATORS
from tests.aggregators.cases import (
    Law,
    allowance,
    distance,
    gap,
    gauged,
    mixed_cohort,
    products,
    same_bits,
    suited,
    tiny_cohort,
)
from tests.aggregators.laws import laws_of
from tests.aggregators.promised_laws import two_merged
from tests.strategies import cohorts

CASES = [
    pytest.param(name, law, id=f"{name}-{law_name}")
    for name, row in AGGREGATORS.items()
    for law_name, law in laws_of(row).items()
]
SEE_THE_GAUGE = [n for n, row in AGGREGATORS.items() if not row.gauge_invariant and row.sends == "both"]


@pytest.mark.parametrize(("name", "law"), CASES)
@settings(derandomize=True, max_examples=6)
@given(data=st.data())
def test_aggregator_keeps_law(name: str, law: Law, data: st.DataObject):
    row = AGGREGATORS[name]
    updates, weights = data.draw(cohorts(min_clients=2))
    law(partial(aggregate, name), row, suited(row, updates), weights)


@pytest.mark.parametrize("name", SEE_THE_GAUGE)
@pytest.mark.parametrize("seed", [1, 2])
def test_methods_that_see_the_gauge_do_see_it(name: str, seed: int):
    row = AGGREGATORS[name]
    updates, weights = mixed_cohort(seed)
    updates = suited(row, updates)
    turned = [gauged(update, 31 + 10 * k) for k, update in enumerate(updates)]
    shares = [row.share(aggregate(name, cohort, weights), updates[0].ranks) for cohort in (updates, turned)]
    assert distance(*map(products, shares)) > 1e6 * allowance(row, *updates)


@pytest.mark.parametrize("name", [n for n, row in AGGREGATORS.items() if row.needs == "updates"])
@pytest.mark.parametrize("seed", [1, 2])
def test_methods_that_need_every_update_do_need_it(name: str, seed: int):
    row = AGGREGATORS[name]
    updates, weights = mixed_cohort(seed)
    apart, together = two_merged(suited(row, updates), weights)
    assert gap(row, aggregate(name, *apart), aggregate(name, *together)) > 1e6 * allowance(row, *updates)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_arrival_and_cuts_of_the_tree_change_no_bit(name: str):
    updates, weights = tiny_cohort(2 * BLOCK + 5)
    updates = suited(AGGREGATORS[name], updates)
    blocks = [range(BLOCK), range(BLOCK, 2 * BLOCK), range(2 * BLOCK, len(updates))]
    expected = aggregate(name, updates, weights)

    def part(*numbers: int) -> Fold:
        return _folded(name, [position for k in numbers for position in blocks[k]], updates, weights)

    backwards, left, right = part(2, 0, 1), part(2), part(1)
    right.merge(part(0))
    left.merge(right)
    assert same_bits(backwards.finish(None), expected)
    assert same_bits(left.finish(None), expected)


def _folded(name: str, positions: Sequence[int], updates: list[LoraAdapter], weights: list[float]) -> Fold:
    fold = AGGREGATORS[name].fold()
    for position in positions:
        fold.add(position, updates[position], weights[position])
    return fold

"""Every aggregator of the table keeps every law its row promises."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.aggregators.table import AGGREGATORS, aggregate
from tests.aggregators.laws import Law, laws_of
from tests.strategies import cohorts

CASES = [
    pytest.param(name, law, id=f"{name}-{law_name}")
    for name, row in AGGREGATORS.items()
    for law_name, law in laws_of(row).items()
]


@pytest.mark.parametrize(("name", "law"), CASES)
@settings(derandomize=True, max_examples=20, deadline=None)
@given(data=st.data())
def test_aggregator_keeps_law(name: str, law: Law, data: st.DataObject):
    row = AGGREGATORS[name]
    updates, weights = data.draw(cohorts(min_clients=2, has_equal_ranks=not row.mixed_ranks))
    law(partial(aggregate, name), row, updates, weights)

"""Every row of the table keeps every law, on linear layers, convolutions and embeddings."""

import pytest

from tasks.local_methods.table import LOCAL_METHODS
from tests.local_methods import laws
from tests.local_methods.cases import OCCASION, loss_of, make, model_of

# Options under which a method does something in three steps, where the defaults would hide it.
VIVID = {
    "proximal": {"proximal_mu": 1.0},
    "hetlora_prune": {"prune_lambda": 5.0, "prune_min_rank": 1},
}
FROZEN = {"both": set(), "b": {"a"}, "a": {"b"}, "alternate": {"a"}}
DRAWS = {"rm_lora", "prefix_nested"}


# What hides examples draws from the system's entropy, so nothing about it repeats: `test_dp_sgd.py` holds it to laws of
# its own.
REPEATABLE = [name for name, row in LOCAL_METHODS.items() if not row.guards_examples]


@pytest.fixture(params=REPEATABLE)
def row(request):
    return LOCAL_METHODS[request.param]


@pytest.fixture
def made(row):
    return make(row.name, **VIVID.get(row.name, {}))


@pytest.fixture(scope="session")
def trainings():
    """What was trained already, by (row, kind of model)."""
    return {}


@pytest.fixture
def done(trainings, row, made, base):
    key = row.name, base.spec.kind
    if key not in trainings:
        trainings[key] = laws.training(base, made)
    return trainings[key]


def test_frozen_weights_keep_their_bits(done):
    laws.frozen_weights_keep_their_bits(done)


def test_only_what_a_row_says_is_frozen_stays(done, row):
    laws.only_what_is_frozen_at_the_start_stays(done, FROZEN[row.trains])


def test_dense_tensors_take_every_step(done):
    laws.dense_tensors_take_every_step(done)


def test_the_same_occasion_gives_the_same_bits(done, base, made):
    laws.the_same_occasion_gives_the_same_bits(done, base, made)


def test_only_methods_that_draw_look_at_the_seed(bases, row, made):
    laws.only_what_draws_looks_at_the_seed(bases["cnn"], made, draws=row.name in DRAWS)


def test_beside_plain_lora_nothing_changes(bases, made):
    laws.beside_plain_lora_nothing_changes(bases["mlp"], made)


def test_the_penalty_leaves_the_model_alone(base, made):
    laws.the_penalty_leaves_the_model_alone(base, made)


def test_the_gradient_is_the_slope_of_the_penalty(base, made):
    laws.the_gradient_is_the_slope_of_the_penalty(base, made)


def test_a_row_without_a_penalty_adds_none(base, made, row):
    model = model_of(base)
    method = made(OCCASION)
    method.start(model)
    found = method.penalty(model, loss_of(model, base.spec.kind))
    assert row.penalises or found is None
    assert not row.penalises or found is not None


def test_only_rows_that_prune_lower_ranks(done, row):
    laws.ranks_never_grow(done, prunes=row.prunes)


def test_penalties_add_up(bases, made):
    laws.penalties_add_up(bases["cnn"], made)


def test_an_option_of_two_rows_is_one_option():
    options = [option for row in LOCAL_METHODS.values() for option in row.options]
    assert len({option.name for option in options}) == len(set(options))

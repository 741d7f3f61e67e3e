"""From a config to nouns: the pieces fit, and do not depend on order."""

import numpy as np
import pytest

from configs.loading import load_config
from configs.workbench import Workbench
from tasks.errors import ConfigError
from tasks.local_methods.hooks import Occasion
from tasks.training.adaptation import adapt, extract_adapter, load_adapter
from tasks.training.loop import TrainingSpec, train


def bench(*overrides):
    return Workbench(load_config("digits-staircase", list(overrides)))


def test_ceilings_never_exceed_the_layer_and_follow_module_ranks():
    made = bench("ranks.max_rank=32", "ranks.module_ranks=[{module: layers.1, max_rank: 12}]")
    assert made.module_shapes == {"layers.0": (400, 64), "layers.1": (400, 400), "layers.2": (10, 400)}
    assert made.ceilings == {"layers.0": 32, "layers.1": 12, "layers.2": 10}
    assert made.module_ranks(16) == {"layers.0": 16, "layers.1": 6, "layers.2": 5}
    assert made.initial_adapter().ranks == made.ceilings


def test_unknown_module_rank_is_named():
    with pytest.raises(ConfigError, match=r"ranks\.module_ranks: no adapted module is called fc9"):
        _ = bench("ranks.module_ranks=[{module: fc9, max_rank: 2}]").ceilings


def test_validation_share_is_cut_from_the_client_alone_and_seeded():
    made = bench("training.validation_frac=0.2")
    for client in made.clients:
        training, validation = made.client_indices(client)
        assert len(validation) >= 1
        assert set(training) | set(validation) == set(made.partition.indices[client])
        assert not set(training) & set(validation)
        np.testing.assert_array_equal(validation, bench("training.validation_frac=0.2").client_indices(client)[1])


def test_no_validation_share_leaves_all_data_for_training():
    made = bench()
    training, validation = made.client_indices("c03")
    assert len(validation) == 0
    np.testing.assert_array_equal(training, made.partition.indices["c03"])


def test_unknown_client_is_named():
    with pytest.raises(ConfigError, match="client 'c99': holds no data here"):
        bench().client_indices("c99")


def test_same_seed_gives_the_same_base_and_another_seed_another():
    assert bench().base.digest == bench().base.digest != bench("seed=1").base.digest


def test_frozen_config_leaves_out_how_this_process_was_started():
    assert "resume_run" not in bench("resume_run=abc").frozen_config()
    assert bench().flat_config()["data.partition.name"] == "staircase"


@pytest.mark.parametrize("methods", ["[dp_sgd, alternating]", "[alternating, dp_sgd]", "[dp_sgd, ffa]"])
def test_what_hides_examples_trains_beside_what_freezes_in_any_order(methods):
    made = bench(f"training.local_methods={methods}", "model.hidden_sizes=[8]")
    start = made.initial_adapter()
    model = adapt(made.base, made.lora, start.ranks, seed=0)
    load_adapter(model, start)
    train(
        model,
        made.train,
        np.arange(16),
        TrainingSpec(batch_size=8, device="cpu"),
        seed=0,
        method=made.local_method(Occasion(0, 1)),
    )
    assert any(bool(pair.b.any()) for pair in extract_adapter(model).pairs.values())


def test_pruning_goes_by_the_widest_modules_and_narrow_ones_follow():
    made = bench()
    ranks = made.module_ranks(32)
    assert min(ranks.values()) == 10, "the head is narrow"
    kept = {path: int(0.99 * slots) for path, slots in ranks.items()}
    assert made.rank_within(kept, 32) == 31
    assert made.rank_within(ranks, 32) == 32
    assert made.rank_within(dict.fromkeys(ranks, 1), 32) == 1

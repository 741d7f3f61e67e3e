"""A comparison plan: its cells, what wins over what, and how each thing that is wrong with it is said."""

import pytest
import yaml

from configs.comparison import Cell, ComparisonConfig, common_metrics, expand_locations, load_plan
from configs.loading import PRESETS, load_config, load_document, plan_names, preset_names
from tasks.errors import ConfigError

PLAN = {
    "name": "tiny",
    "base": "digits-staircase",
    "set": ["rounds=3", "training.epochs=2"],
    "methods": [
        {"name": "rbla", "set": ["aggregation.name=rbla"]},
        {"name": "fedavg-full", "set": ["aggregation.name=fedavg", "ranks.client_fractions=[1.0]"]},
    ],
    "settings": [
        {"name": "up", "target": 0.8, "set": ["ranks.client_fractions=[0.5, 1.0]", "training.batch_size=16"]},
        {"name": "short", "set": ["rounds=1"]},
    ],
    "seeds": [0, 7],
}


def plan(**changes):
    return ComparisonConfig.model_validate(PLAN | changes)


def experiment(the_plan, cell, *overrides):
    return the_plan.experiment(cell, the_plan.document(overrides))


def written(tmp_path, document):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf8")
    return str(path)


def test_cells_are_the_whole_grid_setting_by_setting():
    cells = plan().cells()
    assert len(set(cells)) == len(cells) == 2 * 2 * 2
    assert [cell.id for cell in cells[:3]] == ["up/rbla/seed0", "up/rbla/seed7", "up/fedavg-full/seed0"]
    assert cells[-1].slug == "short--fedavg-full--seed7"


@pytest.mark.parametrize(("only", "count"), [("", 8), ("up/", 4), ("/rbla/", 4), ("up/rbla", 2), ("seed7", 4)])
def test_only_chooses_cells_by_part_of_their_id(only, count):
    assert len(plan().cells(only)) == count


def test_only_that_fits_nothing_says_what_a_cell_is_called():
    with pytest.raises(ConfigError, match=r"--only flora: fits no cell; expected .*such as up/rbla/seed0"):
        plan().cells("flora")


def test_method_wins_over_setting_over_command_line_over_plan_over_base():
    up = experiment(plan(), Cell("up", "fedavg-full", 7), "rounds=5", "training.batch_size=8")
    assert up.ranks.client_fractions == [1.0], "the method's"
    assert up.training.batch_size == 16, "the setting's"
    assert up.rounds == 5, "the command line's"
    assert up.training.epochs == 2, "the plan's"
    assert up.ranks.max_rank == 32, "the base's"
    assert experiment(plan(), Cell("short", "rbla", 0), "rounds=5").rounds == 1


def test_every_cell_has_its_own_seed_and_model_under_the_plans_name():
    configs = {cell: experiment(plan(), cell) for cell in plan().cells()}
    assert all(config.seed == cell.seed and config.name == "tiny" for cell, config in configs.items())
    assert len({config.model_name for config in configs.values()}) == len(configs)
    assert configs[Cell("up", "rbla", 7)].model_name == "tiny-up--rbla--seed7"


def test_the_base_is_not_written_to():
    base = plan().document()
    before = yaml.safe_dump(base)
    plan().experiment(plan().cells()[0], base)
    assert yaml.safe_dump(base) == before


def test_a_combination_that_does_not_hold_names_its_cell_and_the_remedy():
    broken = plan(methods=[{"name": "fedavg", "set": ["aggregation.name=fedavg"]}])
    with pytest.raises(ConfigError, match=r"cell up/fedavg/seed0: 1 problem\n.*fedavg needs equal ranks.*use rbla"):
        experiment(broken, Cell("up", "fedavg", 0))


def test_an_override_that_is_no_yaml_names_its_cell():
    broken = plan(settings=[{"name": "up", "set": ["rounds=[1"]}])
    with pytest.raises(ConfigError, match=r"cell up/rbla/seed0, set rounds=\[1: value is not YAML"):
        experiment(broken, Cell("up", "rbla", 0))


BAD = [
    ({"methods": []}, r"methods: .*at least 1 item"),
    ({"seeds": []}, r"seeds: .*at least 1 item"),
    ({"seeds": [1, 1]}, r"seeds: 1 stands there twice"),
    ({"methods": [{"name": "a"}, {"name": "a"}]}, r"methods: a stands there twice"),
    ({"settings": [{"name": "a--b"}]}, r"settings\.0\.name: .*pattern"),
    ({"settings": [{"name": "a/b"}]}, r"settings\.0\.name: .*pattern"),
    ({"settings": [{"name": "a", "needs_env": "data"}]}, r"settings\.0\.needs_env: .*pattern"),
    ({"settings": [{"name": "a", "set": ["seed=3"]}]}, r"settings\.0\.set: seed is set by the plan .*leave it out"),
    ({"methods": [{"name": "a", "set": ["publishing.model_name=m"]}]}, r"methods\.0\.set: publishing\.model_name is"),
    ({"methods": [{"name": "a", "set": ["rounds"]}]}, r"methods\.0\.set: 'rounds' is not an override; write section"),
    ({"set": ["a..b=1"]}, r"set: 'a\.\.b=1' is not an override"),
    ({"method": []}, r"method: there is no such field; did you mean 'methods'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[str(changes) for changes, _ in BAD])
def test_bad_plan_names_field_and_remedy(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=r"plan .*plan\.yaml: 1 problem\n  - " + message):
        load_plan(written(tmp_path, PLAN | changes))


def test_a_plan_as_experiment_and_an_experiment_as_plan_say_what_to_do(tmp_path):
    path = written(tmp_path, PLAN)
    with pytest.raises(ConfigError, match="is a comparison plan, not an experiment; run it with `rankweave compare"):
        load_config(path)
    with pytest.raises(
        ConfigError,
        match=r"lists no methods.*such as compare_aggregators, .*compare_local_methods.*or an experiment with --vary",
    ):
        load_plan("digits-staircase")
    with pytest.raises(ConfigError, match="is a comparison plan itself; expected an experiment"):
        plan(base=path).document()


def test_locations_are_filled_in_from_the_variable_a_setting_names():
    there = {"name": "idx", "needs_env": "DATA", "set": ["data.source=idx", "data.location=${DATA}/mnist"]}
    config = experiment(plan(settings=[there]), Cell("idx", "rbla", 0))
    assert config.data.location == "${DATA}/mnist"
    filled = expand_locations(config, {"DATA": "/a b/#c"}, "cell")
    assert filled.data.location == "/a b/#c/mnist"
    assert filled.model_copy(update={"data": config.data}) == config, "nothing else changes"


def test_a_location_with_a_variable_that_its_setting_does_not_name_is_refused():
    there = {"name": "idx", "needs_env": "DATA", "set": ["data.source=idx", "data.location=${HOME}/mnist"]}
    with pytest.raises(ConfigError, match=r"cell idx/rbla/seed0: a location holds \$\{HOME\}.*needs_env: HOME"):
        experiment(plan(settings=[there]), Cell("idx", "rbla", 0))


def test_a_setting_judged_by_two_metrics_is_refused():
    methods = [{"name": "a"}, {"name": "b", "set": ["evaluation.metric=loss"]}]
    by_two = plan(methods=methods, settings=[{"name": "up"}])
    experiments = {cell: experiment(by_two, cell) for cell in by_two.cells()}
    with pytest.raises(ConfigError, match=r"cell up/b/seed0: is judged by another metric.*got loss; expected accuracy"):
        common_metrics(experiments)
    assert common_metrics({cell: experiments[cell] for cell in by_two.cells("/a/")}) == {"up": "accuracy"}


def test_plans_and_experiments_that_ship_are_told_apart():
    compared = ("aggregators", "codecs", "codecs_text", "local_methods", "schedulers")
    assert plan_names() == [f"compare_{name}" for name in compared]
    assert set(preset_names()).isdisjoint(plan_names())


@pytest.mark.parametrize("name", plan_names())
def test_every_shipped_plan_says_how_to_run_it_and_all_its_cells_hold(name):
    shipped = load_plan(name)
    head = (PRESETS / f"{name}.yaml").read_text(encoding="utf8")
    assert all(word in head for word in ("# What:", "# Needs:", f"# Run:   rankweave compare {name}"))
    assert f"{len(shipped.cells())} cells" in head
    base = shipped.document()
    first_seed = [cell for cell in shipped.cells() if cell.seed == shipped.seeds[0]]
    configs = {cell: shipped.experiment(cell, base) for cell in first_seed}
    assert common_metrics(configs) == dict.fromkeys((s.name for s in shipped.settings), "accuracy")
    assert len({config.model_dump_json() for config in configs.values()}) == len(configs), "no cell repeats another"


def test_the_shipped_plan_compares_every_aggregator_that_takes_whole_adapters():
    from tasks.aggregators.table import AGGREGATORS

    compared = {
        override.partition("=")[2]
        for method in load_document("compare_aggregators")["methods"]
        for override in method["set"]
        if override.startswith("aggregation.name=")
    }
    assert compared == set(AGGREGATORS) - {"fedsa", "fed_sb"}, (
        "fedsa leaves no common model, fed_sb is sent cores alone"
    )

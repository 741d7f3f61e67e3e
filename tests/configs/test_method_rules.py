"""What goes with which method: refusals that name field, reason and remedy, and everything else is allowed."""

import json

import pytest

from configs.loading import load_document, parse_config, with_overrides
from configs.workbench import Workbench
from tasks.aggregators.robust.screen import ScreenedFold
from tasks.aggregators.robust.table import ROBUST_RULES
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import ConfigError
from tests.training.pico import save_bert

# Ten clients of ten ranks, quorum 8; the overrides bring it to what a method needs.
PRESET = load_document("digits-staircase")
ONE_RANK = "ranks.client_fractions=[1.0]"
VALIDATED = "training.validation_frac=0.2"
LARGE = ("data.partition.num_clients=10000", "cohort.quorum=10000")
CLUSTERED = "aggregation.clusters.enabled=true"
PERSONAL = "training.local_methods=[fdlora]"
OPTIONS = [(name, option) for name, row in AGGREGATORS.items() for option in row.options]
ROBUST_OPTIONS = [(name, option) for name, rule in ROBUST_RULES.items() for option in rule.options]


def config_of(*overrides):
    return parse_config(with_overrides(PRESET, overrides), "config")


def method(name, **options):
    return f"aggregation.name={name}", f"aggregation.options={_listed(options)}"


def rule(name, **options):
    return f"aggregation.robust={name}", f"aggregation.robust_options={_listed(options)}"


def _listed(options):
    return json.dumps([{"name": name, "value": value} for name, value in options.items()])


def needs(name):
    """Name what the preset lacks for a method."""
    row = AGGREGATORS[name]
    return [*([] if row.mixed_ranks else [ONE_RANK]), *([VALIDATED] if row.sends == "a" else [])]


REFUSED = {
    "fedavg takes one rank": (
        method("fedavg"),
        "aggregation.name: fedavg needs equal ranks, ranks.client_fractions has 10 different ones; use rbla, or one "
        "fraction for all",
    ),
    "fedex takes one rank": (
        method("fedex"),
        "aggregation.name: fedex needs equal ranks, ranks.client_fractions has 10 different ones; use rbla, or one "
        "fraction for all",
    ),
    "an option that is none": (
        method("flexlora", enrgy=0.9),
        "aggregation.options.0.name: option 'enrgy': unknown name; expected one of bank_factor, coverage_exponent",
    ),
    "an option of another method": (
        method("flexlora", coverage_exponent=0.5),
        "aggregation.options: option of flexlora 'coverage_exponent': unknown name; expected one of energy",
    ),
    "an option of a rule": (
        method("flexlora", num_attackers=1),
        "aggregation.options: option of flexlora 'num_attackers': unknown name; expected one of energy",
    ),
    "a rule's option of another rule": (
        rule("norm_clip", num_attackers=1),
        "aggregation.robust_options: option of norm_clip 'num_attackers': unknown name; expected one of factor",
    ),
    "options of no rule": (
        rule("none", factor=2),
        "aggregation.robust_options: there is no robust rule to take them; set aggregation.robust",
    ),
    "half a count": (
        method("delta_svd", bank_factor=1.5),
        "aggregation.options: option bank_factor of delta_svd: has no usable value; got 1.5; expected a whole number "
        "from 1 to 64",
    ),
    "half a switch": (
        method("hetlora", per_module=0.5),
        "aggregation.options: option per_module of hetlora: has no usable value; got 0.5; expected a switch, from 0 to",
    ),
    "quality that nobody can measure": (
        method("fedsa"),
        "aggregation.name: with fedsa clients keep factor b at home, so only they can measure quality; set "
        "training.validation_frac above 0",
    ),
    "ranked without products": (
        (*method("fedsa"), VALIDATED, "aggregation.weighting=ranked"),
        "aggregation.weighting: ranked goes by the norm of products, and fedsa is sent none; use by_examples",
    ),
    "clusters without products": (
        (*method("fedsa"), VALIDATED, CLUSTERED),
        "aggregation.clusters: fedsa is sent no products, which clusters compare; turn them off",
    ),
    "too few for krum": (
        (*rule("krum"), "cohort.quorum=4"),
        "cohort.quorum: krum needs 5 updates or more; raise it, or use another rule",
    ),
    "too few for two attackers": (
        (*rule("krum", num_attackers=2), "cohort.quorum=6"),
        "cohort.quorum: krum needs 7 updates or more; raise it, or use another rule",
    ),
    "too few to select from": (
        (*rule("multi_krum", num_selected=9), "cohort.quorum=9"),
        "cohort.quorum: multi_krum needs 10 updates or more; raise it, or use another rule",
    ),
    "krum in clusters": (
        (*rule("krum"), CLUSTERED),
        "aggregation.robust: krum needs 5 updates, and a cluster may have fewer",
    ),
    "more clusters than clients": (
        (CLUSTERED, "aggregation.clusters.num_clusters=11"),
        "aggregation.clusters.num_clusters: 11 is above the 10 clients",
    ),
    "fusion without validation": (
        (PERSONAL,),
        "training.personal: fusion is searched on each client's validation share; set training.validation_frac",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_refusal_names_field_reason_and_remedy(overrides, message):
    with pytest.raises(ConfigError) as caught:
        config_of(*overrides)
    problem = str(caught.value).partition("1 problem\n  - ")[2]
    assert problem.startswith(message)
    assert len(problem.splitlines()) == 1


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_method_runs_with_its_defaults(name):
    config = config_of(*method(name), *needs(name))
    assert Workbench(config).aggregator is AGGREGATORS[name]
    Workbench(config).fold()


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=lambda v: getattr(v, "name", v))
def test_every_option_of_a_method_can_be_set_from_bound_to_bound(name, option):
    for value in (option.least, option.most):
        Workbench(config_of(*method(name, **{option.name: value}), *needs(name))).fold()


@pytest.mark.parametrize(("name", "option"), ROBUST_OPTIONS, ids=lambda v: getattr(v, "name", v))
def test_every_option_of_a_rule_can_be_set_from_bound_to_bound(name, option):
    for value in (option.least, option.most):
        others = {"num_attackers": 0} if option.name == "num_selected" else {}  # so that the quorum allows it
        config = config_of(*rule(name, **{option.name: value}, **others), *LARGE)
        assert isinstance(Workbench(config).fold(), ScreenedFold)


@pytest.mark.parametrize(
    ("field", "name", "option"),
    [("options", *entry) for entry in OPTIONS] + [("robust_options", *entry) for entry in ROBUST_OPTIONS],
    ids=lambda v: getattr(v, "name", v),
)
def test_an_option_beyond_its_bounds_is_refused_with_them(field, name, option):
    expected = f"from {option.least:g} to {option.most:g}"
    below, above = option.least - 0.001, option.most + 1
    for value in (above, *([below] if below >= 0 else [])):
        settings = method(name, **{option.name: value}) if field == "options" else rule(name, **{option.name: value})
        with pytest.raises(ConfigError) as caught:
            config_of(*settings, *needs(name if field == "options" else "rbla"), *LARGE)
        assert f"aggregation.{field}: option {option.name} of {name}: has no usable value; got " in str(caught.value)
        assert expected in str(caught.value)


@pytest.mark.parametrize("value", ["-0.1", "2e9", ".nan", ".inf", "high"])
def test_a_value_that_no_option_takes_is_refused_by_the_form(value):
    with pytest.raises(ConfigError, match=r"aggregation\.options\.0\.value: "):
        config_of("aggregation.name=flexlora", f"aggregation.options=[{{name: energy, value: {value}}}]")


# Rules that refactor would tear the shared a from ffa's b and fed_sb's cores; fedsa sends no products that a rule could
# compare; hetlora finds its own weights, and would undo what a rule does by weights.
APART = {
    ("ffa", "coordinate_median"),
    ("ffa", "trimmed_mean"),
    ("fed_sb", "coordinate_median"),
    ("fed_sb", "trimmed_mean"),
    ("hetlora", "geometric_median"),
    *(("fedsa", name) for name in ROBUST_RULES),
}


@pytest.mark.parametrize("robust", ROBUST_RULES)
@pytest.mark.parametrize("name", AGGREGATORS)
def test_any_method_goes_with_any_rule_that_leaves_it_what_it_needs(name, robust):
    overrides = [*method(name), *rule(robust), *needs(name)]
    if (name, robust) not in APART:
        assert isinstance(Workbench(config_of(*overrides)).fold(), ScreenedFold)
        return
    with pytest.raises(ConfigError) as caught:
        config_of(*overrides)
    shared = f"aggregation.robust: {robust} makes new factors, and {name} needs the shared one as it is; use another"
    reason = {
        "ffa": shared,
        "fed_sb": shared,
        "fedsa": f"aggregation.robust: fedsa is sent no products, which {robust} compares; leave the rule out",
        "hetlora": f"aggregation.robust: {robust} acts by weights, and hetlora finds its own; use another rule",
    }
    assert reason[name] in str(caught.value)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_personal_adapter_needs_a_whole_global_one_on_an_unchanged_base(name):
    overrides = [*method(name), *needs(name), VALIDATED, PERSONAL]
    if name not in {"ffa", "fedsa", "fed_sb", "flora_stack", "fedex"}:
        assert config_of(*overrides).training.keeps_personal
        return
    with pytest.raises(ConfigError) as caught:
        config_of(*overrides)
    assert (
        "training.personal: needs a global adapter that clients hold whole on an unchanged base, which "
        f"{name} does not give; use rbla or raflora"
    ) in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        (CLUSTERED,),
        (CLUSTERED, "aggregation.clusters.num_clusters=10"),
        (CLUSTERED, *rule("geometric_median")),
        (*rule("krum"), "cohort.quorum=5"),
        (*rule("multi_krum", num_selected=7), "cohort.quorum=8"),
        ("aggregation.clusters.num_clusters=11",),  # nobody clusters
    ],
    ids=" ".join,
)
def test_what_just_fits_is_allowed(overrides):
    assert config_of(*overrides)


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A pico BERT and a few labelled texts, as the overrides that select them."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": f"w{4 + i % 30} w{5 + i % 7}", "label": "ab"[i % 2]} for i in range(24)]
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(rows))
    return [
        "model.kind=sequence_classification",
        f"model.location={save_bert(tmp_path / 'bert')}",
        "data.source=hub",
        f"data.location={texts}",
        "data.partition.name=iid",
        "data.partition.num_clients=2",
        "cohort.quorum=1",
        "ranks.max_rank=2",
    ]


def test_a_frozen_factor_that_is_zero_is_refused(reviews):
    bench = Workbench(config_of(*reviews, *method("ffa"), "model.lora.target_modules=[word_embeddings, query]"))
    with pytest.raises(ConfigError) as caught:
        bench.load()
    assert str(caught.value) == (
        "aggregation.name: ffa freezes factor a, which is zero in bert.embeddings.word_embeddings: they would never "
        "learn; leave embedding layers out of model.lora.target_modules, or use another aggregator"
    )


@pytest.mark.parametrize(("name", "targets"), [("ffa", "[query]"), ("rbla", "[word_embeddings, query]")])
def test_embeddings_are_for_methods_that_train_both_factors(reviews, name, targets):
    bench = Workbench(config_of(*reviews, *method(name), f"model.lora.target_modules={targets}"))
    assert bench.load() is bench


@pytest.mark.parametrize("name", ["fedavg", "fedex"])
def test_equal_ranks_must_stay_so(name):
    with pytest.raises(ConfigError, match=rf"ranks\.schedulers: ({name} needs equal|with {name} clients hold)"):
        config_of(*method(name), "ranks.schedulers=[capability]")


def test_ranks_may_move_together_where_they_must_be_equal():
    config = config_of(*method("fedavg"), *needs("fedavg"), "ranks.schedulers=[sa_annealing]")
    assert config.ranks.schedulers == ["sa_annealing"]


@pytest.mark.parametrize("name", ["ffa", "fedsa", "fed_sb", "flora_stack", "fedex"])
def test_ranks_stay_where_clients_hold_factors_of_their_own(name):
    with pytest.raises(ConfigError, match=rf"ranks\.schedulers: with {name} clients hold factors of their own"):
        config_of(*method(name), *needs(name), VALIDATED, "ranks.schedulers=[fixed, sa_annealing]")


REFUSED = [
    (["ranks.schedulers=[fixed, fixed]"], "ranks.schedulers: a name is given twice"),
    (["training.local_methods=[lora, lora]"], "training.local_methods: a name is given twice"),
    (["ranks.schedulers=[hetlora_prune]"], "ranks.schedulers: hetlora_prune follows clients that prune"),
    (["training.local_methods=[hetlora_prune]"], "training.local_methods: hetlora_prune lowers ranks that nobody"),
    (
        [*method("fedavg"), "training.local_methods=[hetlora_prune]", "ranks.schedulers=[hetlora_prune]"],
        "ranks.schedulers: fedavg needs equal ranks, which hetlora_prune does not keep",
    ),
    (["training.local_methods=[ffa, alternating]"], "training.local_methods: ffa and alternating freeze factors both"),
    (
        [*method("ffa"), "training.local_methods=[alternating]"],
        "training.local_methods: with ffa clients send factor b",
    ),
    (
        ["ranks.schedulers=[energy]", "aggregation.clusters.enabled=true"],
        "ranks.schedulers: energy follows one global adapter",
    ),
    (["ranks.options=[{name: curve, value: cosine}]"], "ranks.options: fixed: has no options"),
    (
        ["ranks.schedulers=[sa_annealing]", "ranks.options=[{name: curve, value: square}]"],
        "ranks.options: curve of sa_annealing 'square': unknown name; expected one of cosine, cubic, linear",
    ),
    (
        ["ranks.schedulers=[sa_annealing]", "ranks.options=[{name: floor_rank, value: two}]"],
        "ranks.options: option floor_rank of sa_annealing: has no usable value",
    ),
]


@pytest.mark.parametrize(("overrides", "reason"), REFUSED)
def test_ranks_and_local_methods_that_do_not_fit_are_refused(overrides, reason):
    with pytest.raises(ConfigError) as caught:
        config_of(*overrides)
    assert reason in str(caught.value)


def test_options_are_shared_by_the_methods_that_take_them():
    config = config_of(
        "ranks.schedulers=[sa_annealing, capability]",
        "ranks.options=[{name: curve, value: cosine}, {name: floor_rank, value: 2}, {name: unknown_rank, value: 4}]",
    )
    assert [option.value for option in config.ranks.options] == ["cosine", "2", "4"]

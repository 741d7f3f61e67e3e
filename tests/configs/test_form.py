"""The schema that Prefect serves: order, drop-downs, bounds, and presets that load."""

import pytest

from configs.experiment import ExperimentConfig
from configs.loading import PRESETS, load_config, preset_names
from configs.sections import NO_RULE
from tasks.aggregators.robust.table import ROBUST_RULES
from tasks.aggregators.surrogates import SURROGATES
from tasks.aggregators.table import AGGREGATORS
from tasks.aggregators.weightings import WEIGHTINGS
from tasks.codecs.table import CODECS
from tasks.cohorts.selections.table import SELECTIONS
from tasks.data.partitions import PARTITIONS
from tasks.data.sources import SOURCES
from tasks.lazy.table import LAZY_RULES
from tasks.local_methods.table import LOCAL_METHODS
from tasks.rank_schedulers.table import RANK_SCHEDULERS
from tasks.training.models import MODEL_KINDS

SCHEMA = ExperimentConfig.model_json_schema()
SECTIONS = {"ExperimentConfig": SCHEMA, **SCHEMA["$defs"]}
FIELDS = {
    f"{section}.{name}": field for section, schema in SECTIONS.items() for name, field in schema["properties"].items()
}
OPTIONS = [(row.name, option) for row in (*AGGREGATORS.values(), *ROBUST_RULES.values()) for option in row.options]
DROP_DOWNS = [
    ("AggregationConfig", "name", AGGREGATORS),
    ("AggregationConfig", "weighting", WEIGHTINGS),
    ("AggregationConfig", "robust", [NO_RULE, *ROBUST_RULES]),
    ("MethodOption", "name", sorted({option.name for _, option in OPTIONS})),
    ("ExchangeConfig", "uplink_codec", CODECS),
    ("ExchangeConfig", "downlink_codec", CODECS),
    ("PartitionConfig", "name", PARTITIONS),
    ("DataConfig", "source", SOURCES),
    ("TrainingConfig", "local_methods", LOCAL_METHODS),
    ("RanksConfig", "schedulers", RANK_SCHEDULERS),
    ("RankOption", "name", sorted({option.name for row in RANK_SCHEDULERS.values() for option in row.options})),
    ("TrainingOption", "name", sorted({option.name for row in LOCAL_METHODS.values() for option in row.options})),
    ("ModelConfig", "kind", MODEL_KINDS),
    ("ExchangeConfig", "lazy", LAZY_RULES),
    ("CohortConfig", "selection", SELECTIONS),
    ("CodecOption", "name", sorted({option.name for row in CODECS.values() for option in row.options})),
    ("LazyOption", "name", sorted({option.name for row in LAZY_RULES.values() for option in row.options})),
    ("SelectionOption", "name", sorted({option.name for row in SELECTIONS.values() for option in row.options})),
    ("SurrogateOption", "name", sorted(option.name for option in SURROGATES.options)),
]


@pytest.mark.parametrize(("section", "field", "table"), DROP_DOWNS)
def test_drop_down_offers_exactly_the_table(section, field, table):
    shown = SECTIONS[section]["properties"][field]
    assert shown.get("items", shown)["enum"] == list(table)


@pytest.mark.parametrize("section", SECTIONS)
def test_fields_keep_the_order_they_are_written_in(section):
    positions = [field["position"] for field in SECTIONS[section]["properties"].values()]
    assert positions == list(range(len(positions)))


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_field_has_a_title_and_words_and_inclusive_bounds(field):
    assert "title" in field or "$ref" in field or "allOf" in field
    assert "$ref" in field or "allOf" in field or field.get("description", "").endswith(".") or "items" in field
    assert "exclusiveMinimum" not in field
    assert "exclusiveMaximum" not in field
    assert "anyOf" not in field, "an optional shows as two tabs; give a default that means all or none"


def test_numbers_have_both_bounds():
    entries = [*FIELDS.values(), *(field.get("items", {}) for field in FIELDS.values())]
    numbers = [entry for entry in entries if entry.get("type") in {"integer", "number"}]
    assert len(numbers) > 20
    assert all("minimum" in entry and "maximum" in entry for entry in numbers)


@pytest.mark.parametrize("field", ["options", "robust_options"])
def test_options_are_lists_of_a_drop_down_and_a_number(field):
    assert SECTIONS["AggregationConfig"]["properties"][field]["items"] == {"$ref": "#/$defs/MethodOption"}
    assert list(SECTIONS["MethodOption"]["properties"]) == ["name", "value"]


@pytest.mark.parametrize(("method", "option"), OPTIONS, ids=lambda v: getattr(v, "name", v))
def test_form_says_what_every_option_does_and_to_whom_and_takes_all_its_values(method, option):
    fields = SECTIONS["MethodOption"]["properties"]
    _, found, rest = fields["name"]["description"].partition(f"{option.name}: {option.description} (")
    assert found
    assert method in rest.partition(")")[0].split(", ")
    assert fields["value"]["minimum"] <= option.least < option.most <= fields["value"]["maximum"]


def test_defaults_run_as_they_are():
    assert ExperimentConfig().aggregation.name in AGGREGATORS


def test_every_preset_is_found_and_loads_and_says_how_to_run_it():
    assert preset_names() == ["digits-staircase", "sa-fedlora"]
    for name in preset_names():
        assert load_config(name).name
        head = (PRESETS / f"{name}.yaml").read_text(encoding="utf8").splitlines()
        words = "\n".join(line for line in head if line.startswith("#"))
        assert all(word in words for word in ("What:", "Needs:", f"Run:   rankweave run {name}"))

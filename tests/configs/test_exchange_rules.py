"""What of codecs, lazy clients and missing ones goes together: each refusal with field and reason, and all else."""

import pytest

from configs.loading import load_config, preset_names
from configs.rules import problem_of
from configs.workbench import Workbench
from tasks.codecs.table import CODECS
from tasks.cohorts.selections.table import SELECTIONS
from tasks.errors import ConfigError
from tasks.lazy.table import LAZY_RULES

LAZY = [name for name, row in LAZY_RULES.items() if row.may_skip]
SECURE = "privacy.secure_aggregation=true"
SURROGATES = "aggregation.surrogates=true"
PRIVATE = (
    "privacy.mode=clients",
    "aggregation.name=ffa",
    "aggregation.weighting=uniform",
    "cohort.quorum=1",
    "evaluation.diagnostics=false",
)
VALIDATED = "training.validation_frac=0.2"


def config_of(*overrides: str):
    return load_config("digits-staircase", list(overrides))


def problem(*overrides: str) -> str:
    """The one problem of a config, without what comes before it."""
    with pytest.raises(ConfigError) as caught:
        config_of(*overrides)
    found = str(caught.value).partition("1 problem\n  - ")[2]
    assert found
    assert len(found.splitlines()) == 1
    return found


REFUSED = {
    # lazy clients
    "lazy and private": (
        ("exchange.lazy=laq", *PRIVATE),
        "exchange.lazy: who skips tells about its data, and an update that counts twice is accounted for once; ",
    ),
    "lazy products": (
        ("exchange.lazy=aquila", "aggregation.name=flexlora"),
        "exchange.lazy: an old update holds only where slots are averaged and the base stays, not with flexlora",
    ),
    "lazy cores": (
        ("exchange.lazy=aquila", "aggregation.name=fed_sb"),
        "exchange.lazy: an old update holds only where slots are averaged and the base stays, not with fed_sb",
    ),
    "lazy stacks": (
        ("exchange.lazy=aquila", "aggregation.name=flora_stack"),
        "exchange.lazy: an old update holds only where slots are averaged and the base stays, not with flora_stack",
    ),
    "lazy merges": (
        ("exchange.lazy=aquila", "aggregation.name=fedex", "ranks.client_fractions=[1.0]"),
        "exchange.lazy: an old update holds only where slots are averaged and the base stays, not with fedex",
    ),
    "lazy turns": (
        ("exchange.lazy=laq", "training.local_methods=[alternating]"),
        "exchange.lazy: with alternating no two rounds in a row send the same factor; use never, or another method",
    ),
    "a lazy rule's option without the rule": (
        ("exchange.lazy_options=[{name: laq_xi, value: 1}]",),
        "exchange.lazy_options: never: has no options",
    ),
    "another lazy rule's option": (
        ("exchange.lazy=aquila", "exchange.lazy_options=[{name: laq_xi, value: 1}]"),
        "exchange.lazy_options: option of aquila 'laq_xi': unknown name; expected one of aquila_beta, max_skips",
    ),
    # codecs
    "a codec's option without the codec": (
        ("exchange.uplink_options=[{name: bits, value: 4}]",),
        "exchange.uplink_options: fp32: has no options",
    ),
    "a downlink option out of bounds": (
        ("exchange.downlink_codec=compact", "exchange.downlink_options=[{name: keep, value: 2}]"),
        "exchange.downlink_options: option keep of compact: has no usable value; got 2",
    ),
    "an option set twice": (
        ("exchange.uplink_codec=compact", "exchange.uplink_options=[{name: bits, value: 4}, {name: bits, value: 8}]"),
        "exchange.uplink_options: an option is set twice; keep one of the two",
    ),
    "local methods on cores": (
        ("aggregation.name=fed_sb", "training.local_methods=[prefix_nested]"),
        "training.local_methods: prefix_nested works on both factors, and with fed_sb clients train the core",
    ),
    # clients that are missing, and who is invited
    "a loss on real links": (
        ("dispatch.mode=pools", "dispatch.simulated_loss=0.1"),
        "dispatch.simulated_loss: links are simulated inline only; set it to 0, or dispatch.mode to inline",
    ),
    "a selection under privacy": (
        ("cohort.selection=by_norm", *PRIVATE),
        "cohort.selection: by_norm invites clients by what they did, which voids what random cohorts do for privacy",
    ),
    "a selection's option without it": (
        ("cohort.selection_options=[{name: floor, value: 0.1}]",),
        "cohort.selection_options: uniform: has no options",
    ),
    "options of no surrogates": (
        ("aggregation.surrogate_options=[{name: gamma, value: 0.5}]",),
        "aggregation.surrogate_options: there are no surrogates to take them; set aggregation.surrogates",
    ),
    "an option of surrogates out of bounds": (
        (SURROGATES, "aggregation.surrogate_options=[{name: gamma, value: 2}]"),
        "aggregation.surrogate_options: option gamma of surrogates: has no usable value; got 2",
    ),
    "surrogates under privacy": (
        (SURROGATES, *PRIVATE),
        "aggregation.surrogates: a client that stands in for another counts twice, which noise for one would not cover",
    ),
    "surrogates behind a robust rule": (
        (SURROGATES, "aggregation.robust=norm_clip"),
        "aggregation.surrogates: a stranger's weight may grow, which norm_clip is there to prevent; leave the rule out",
    ),
    "surrogates in clusters": (
        (SURROGATES, "aggregation.clusters.enabled=true"),
        "aggregation.surrogates: who is like whom is known for one model, and clusters have several; ",
    ),
    "surrogates by quality": (
        (SURROGATES, "aggregation.weighting=ranked", VALIDATED),
        "aggregation.surrogates: nobody knows the quality of an update that did not come; use by_examples",
    ),
    "surrogates without products": (
        (SURROGATES, "aggregation.name=fedsa", VALIDATED),
        "aggregation.surrogates: fedsa is sent no products, which are compared",
    ),
    "surrogates of a method with weights of its own": (
        (SURROGATES, "aggregation.name=hetlora"),
        "aggregation.surrogates: hetlora finds its own weights",
    ),
    # hidden sums
    "hidden sums of top changes": (
        (SECURE, "exchange.uplink_codec=compact", "exchange.uplink_options=[{name: keep, value: 0.1}]"),
        "privacy.secure_aggregation: the codec compact lets each client choose what it sends, and a place that one ",
    ),
    "hidden sums of FLASC": (
        (SECURE, "exchange.uplink_codec=flasc"),
        "privacy.secure_aggregation: the codec flasc lets each client choose what it sends, and a place that one ",
    ),
    "hidden sums of lazy clients": (
        (SECURE, "exchange.lazy=aquila"),
        "privacy.secure_aggregation: the lazy rule aquila needs each client's own update on the server; turn it off",
    ),
    "hidden sums with surrogates": (
        (SECURE, SURROGATES),
        "privacy.secure_aggregation: surrogates need each client's own update on the server; turn it off",
    ),
    "hidden sums behind a robust rule": (
        (SECURE, "aggregation.robust=norm_clip"),
        "privacy.secure_aggregation: the robust rule norm_clip needs each client's own update; turn it off",
    ),
    "hidden sums of factors": (
        (SECURE, "aggregation.name=flora_stack"),
        "privacy.secure_aggregation: flora_stack needs each client's own update; turn it off",
    ),
    "hidden sums in clusters": (
        (SECURE, "aggregation.clusters.enabled=true"),
        "privacy.secure_aggregation: clusters compare each client's own update; turn it off",
    ),
    "hidden sums": (
        (SECURE,),
        "privacy.secure_aggregation: no library can serve it today, as docs/threat-model.md says; turn it off",
    ),
    "hidden sums of what all choose alike": (
        (SECURE, "exchange.uplink_codec=compact",
         "exchange.uplink_options=[{name: keep, value: 0.1}, {name: select, value: shared}]"),
        "privacy.secure_aggregation: no library can serve it today, as docs/threat-model.md says; turn it off",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_field_reason_and_remedy(overrides, message):
    assert problem(*overrides).startswith(message)


@pytest.mark.parametrize("name", preset_names())
def test_presets_pass(name):
    assert problem_of(load_config(name)) == ""


def test_defaults_of_the_sections_move_everything_exactly():
    exchange = config_of().exchange
    assert (exchange.uplink_codec, exchange.downlink_codec, exchange.lazy) == ("fp32", "fp32", "never")
    assert not Workbench(config_of()).is_lazy


@pytest.mark.parametrize("uplink", CODECS)
@pytest.mark.parametrize("downlink", CODECS)
def test_any_codec_goes_with_any_other_and_with_lazy_clients(uplink, downlink):
    ways = (f"exchange.uplink_codec={uplink}", f"exchange.downlink_codec={downlink}", f"exchange.lazy={LAZY[0]}")
    bench = Workbench(config_of(*ways))
    assert (bench.uplink_codec, bench.downlink_codec) == (CODECS[uplink], CODECS[downlink])


@pytest.mark.parametrize("lazy", LAZY)
@pytest.mark.parametrize(
    "method", ["rbla", "zero_pad", "hetlora", "ffa", "fedsa"], ids=["rbla", "zero_pad", "hetlora", "ffa", "fedsa"]
)
def test_lazy_clients_go_with_means_of_slots(method, lazy):
    assert Workbench(config_of(f"aggregation.name={method}", VALIDATED, f"exchange.lazy={lazy}")).is_lazy


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_go_with_privacy(codec):
    assert config_of(*PRIVATE, f"exchange.uplink_codec={codec}").exchange.uplink_codec == codec


@pytest.mark.parametrize("name", SELECTIONS)
def test_any_selection_goes_with_surrogates_and_losses(name):
    config = config_of(SURROGATES, f"cohort.selection={name}", "dispatch.simulated_loss=0.3")
    assert config.cohort.selection == name

"""Rules of what crosses the link: combinations of codecs, lazy, missing and chosen clients that cannot be honoured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.sections import NO_RULE
from configs.sections.options import values_of
from tasks.aggregators.table import AGGREGATORS
from tasks.codecs.table import picks
from tasks.cohorts.selections.table import SELECTIONS
from tasks.lazy.table import LAZY_RULES
from tasks.local_methods.table import LOCAL_METHODS

if TYPE_CHECKING:
    from configs.experiment import ExperimentConfig


def secure_aggregation_fits(config: ExperimentConfig) -> str:
    """Refuse the flag: first for what it could never go with, then because no library serves it today."""
    if not config.privacy.secure_aggregation:
        return ""
    exchange, aggregation = config.exchange, config.aggregation
    reasons = {
        f"the codec {exchange.uplink_codec} lets each client choose what it sends, and a place that one client alone "
        "names shows that client": picks(exchange.uplink_codec, values_of(exchange.uplink_options)),
        f"the lazy rule {exchange.lazy} needs each client's own update on the server": _is_lazy(config),
        "surrogates need each client's own update on the server": aggregation.surrogates,
        f"the robust rule {aggregation.robust} needs each client's own update": aggregation.robust != NO_RULE,
        f"{aggregation.name} needs each client's own update": AGGREGATORS[aggregation.name].needs != "sums",
        "clusters compare each client's own update": aggregation.clusters.enabled,
    }
    never = next((reason for reason, applies in reasons.items() if applies), "")
    why = never or "no library can serve it today, as docs/threat-model.md says"
    return f"privacy.secure_aggregation: {why}; turn it off"


def lazy_clients_fit(config: ExperimentConfig) -> str:
    """Refuse lazy clients where an old update says nothing, or too much."""
    if not _is_lazy(config):
        return ""
    row = AGGREGATORS[config.aggregation.name]
    taking_turns = [n for n in config.training.local_methods if LOCAL_METHODS[n].trains == "alternate"]
    if config.privacy.mode != "none":
        return (
            f"exchange.lazy: who skips tells about its data, and an update that counts twice is accounted for once; "
            f"{config.privacy.mode} could not be hidden; use never"
        )
    if row.averages != "slots" or row.downlink != "slice":
        return (
            "exchange.lazy: an old update holds only where slots are averaged and the base stays, not with "
            f"{row.name}; use never, or an aggregator such as rbla"
        )
    if taking_turns:
        return (
            f"exchange.lazy: with {taking_turns[0]} no two rounds in a row send the same factor; use never, or another "
            "method"
        )
    return ""


def selection_fits(config: ExperimentConfig) -> str:
    """Refuse to choose clients by what they did where they are hidden."""
    name = config.cohort.selection
    if not SELECTIONS[name].follows_clients or config.privacy.mode == "none":
        return ""
    return (
        f"cohort.selection: {name} invites clients by what they did, which voids what random cohorts do for privacy; "
        "use uniform"
    )


def simulated_loss_fits(config: ExperimentConfig) -> str:
    """Refuse to lose answers on real links."""
    if config.dispatch.simulated_loss > 0 and config.dispatch.mode != "inline":
        return "dispatch.simulated_loss: links are simulated inline only; set it to 0, or dispatch.mode to inline"
    return ""


def surrogates_fit(config: ExperimentConfig) -> str:
    """Refuse surrogates where nobody can say who is like whom, or where a client must not count for two."""
    aggregation, row = config.aggregation, AGGREGATORS[config.aggregation.name]
    if not aggregation.surrogates:
        unused = "aggregation.surrogate_options: there are no surrogates to take them; set aggregation.surrogates"
        return unused if aggregation.surrogate_options else ""
    refused = {
        "a client that stands in for another counts twice, which noise for one would not cover; turn them off": (
            config.privacy.mode != "none"
        ),
        f"a stranger's weight may grow, which {aggregation.robust} is there to prevent; leave the rule out": (
            aggregation.robust != NO_RULE
        ),
        "who is like whom is known for one model, and clusters have several; turn off one of the two": (
            aggregation.clusters.enabled
        ),
        "nobody knows the quality of an update that did not come; use by_examples": aggregation.weighting == "ranked",
        f"{row.name} is sent no products, which are compared; turn them off, or use another aggregator": (
            row.sends == "a"
        ),
        f"{row.name} finds its own weights; turn them off, or use another aggregator": not row.weighs_by_examples,
    }
    reason = next((reason for reason, applies in refused.items() if applies), "")
    return f"aggregation.surrogates: {reason}" if reason else ""


def core_has_its_method(config: ExperimentConfig) -> str:
    """Refuse local methods that work on factors where only the core between them is trained."""
    row = AGGREGATORS[config.aggregation.name]
    working = [name for name in config.training.local_methods if LOCAL_METHODS[name].needs_factors]
    if row.sends != "core" or not working:
        return ""
    return (
        f"training.local_methods: {working[0]} works on both factors, and with {row.name} clients train the core "
        "between them alone; use lora, or another aggregator"
    )


def _is_lazy(config: ExperimentConfig) -> bool:
    """Tell whether clients may skip an upload."""
    return LAZY_RULES[config.exchange.lazy].may_skip


EXCHANGE_RULES = (
    secure_aggregation_fits,
    lazy_clients_fit,
    selection_fits,
    simulated_loss_fits,
    surrogates_fit,
    core_has_its_method,
)
"""In the order in which a config is told of them."""

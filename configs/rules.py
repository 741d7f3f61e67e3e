"""Rules that span the sections of an experiment: combinations that cannot be honoured, each refused with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from configs.exchange_rules import EXCHANGE_RULES
from configs.sections import NO_RULE
from configs.sections.options import GivenOption, values_of
from configs.stages import whole_model_fits
from tasks.aggregators.promises import Aggregator
from tasks.aggregators.robust.table import ROBUST_RULES, misfit
from tasks.aggregators.surrogates import SURROGATES
from tasks.aggregators.table import AGGREGATORS
from tasks.codecs.table import CODECS
from tasks.cohorts.selections.table import SELECTIONS
from tasks.errors import RankweaveError
from tasks.lazy.table import LAZY_RULES
from tasks.local_methods.table import LOCAL_METHODS
from tasks.options import HasOptions, Value, allotted, chosen
from tasks.rank_schedulers.table import RANK_SCHEDULERS

if TYPE_CHECKING:
    from configs.experiment import ExperimentConfig

FIXED = "fixed"
PRUNE_SCHEDULER = "hetlora_prune"

_OWN_NETWORKS = {"mlp", "cnn"}
_IMAGE_KINDS = {*_OWN_NETWORKS, "image_classification"}
_LANGUAGE_METRICS = {"loss", "perplexity", "token_accuracy"}
_CLASS_METRICS = {"accuracy", "macro_f1", "loss"}


def _quorum_fits(config: ExperimentConfig) -> str:
    clients = config.data.partition.num_clients
    invited = config.cohort.cohort_size + config.cohort.overshoot if config.cohort.cohort_size else clients
    invited = min(invited, clients) if clients else invited
    if invited and config.cohort.quorum > invited:
        return f"cohort.quorum: {config.cohort.quorum} is above the {invited} clients invited; lower it or invite more"
    return ""


def _ranks_fit_aggregator(config: ExperimentConfig) -> str:
    row, ranks = AGGREGATORS[config.aggregation.name], config.ranks
    moving = [name for name in ranks.schedulers if name != FIXED]
    if moving and (row.downlink != "slice" or row.sends != "both"):
        return (
            f"ranks.schedulers: with {row.name} clients hold factors of their own that a change of rank would not fit; "
            f"use {FIXED}, or another aggregator"
        )
    unequal = [name for name in moving if not RANK_SCHEDULERS[name].equal_ranks]
    if not row.mixed_ranks and unequal:
        return (
            f"ranks.schedulers: {row.name} needs equal ranks, which {', '.join(unequal)} does not keep; use "
            f"{', '.join(name for name, other in RANK_SCHEDULERS.items() if other.equal_ranks)}, or another aggregator"
        )
    if not row.mixed_ranks and len(set(ranks.client_fractions)) > 1:
        return (
            f"aggregation.name: {config.aggregation.name} needs equal ranks, ranks.client_fractions has "
            f"{len(set(ranks.client_fractions))} different ones; use rbla, or one fraction for all"
        )
    return ""


def _spectra_have_one_model(config: ExperimentConfig) -> str:
    readers = [name for name in config.ranks.schedulers if RANK_SCHEDULERS[name].reads_spectra]
    if readers and config.aggregation.clusters.enabled:
        return f"ranks.schedulers: {readers[0]} follows one global adapter, and clusters have several; turn one of them off"
    return ""


def _names_are_chosen_once(config: ExperimentConfig) -> str:
    for field, names in (
        ("ranks.schedulers", config.ranks.schedulers),
        ("training.local_methods", config.training.local_methods),
    ):
        if len(set(names)) < len(names):
            return f"{field}: a name is given twice; keep one of the two"
    return ""


def _options_fit_methods(config: ExperimentConfig) -> str:
    aggregation, ranks, training, exchange = config.aggregation, config.ranks, config.training, config.exchange
    if aggregation.robust == NO_RULE and aggregation.robust_options:
        return "aggregation.robust_options: there is no robust rule to take them; set aggregation.robust"
    robust = [] if aggregation.robust == NO_RULE else [ROBUST_RULES[aggregation.robust]]
    families: list[tuple[str, Sequence[HasOptions], Sequence[GivenOption[Value]]]] = [
        ("aggregation.options", [AGGREGATORS[aggregation.name]], aggregation.options),
        ("aggregation.robust_options", robust, aggregation.robust_options),
        ("ranks.options", [RANK_SCHEDULERS[name] for name in ranks.schedulers], ranks.options),
        ("training.options", [LOCAL_METHODS[name] for name in training.local_methods], training.options),
        ("exchange.uplink_options", [CODECS[exchange.uplink_codec]], exchange.uplink_options),
        ("exchange.lazy_options", [LAZY_RULES[exchange.lazy]], exchange.lazy_options),
        ("cohort.selection_options", [SELECTIONS[config.cohort.selection]], config.cohort.selection_options),
        ("aggregation.surrogate_options", [SURROGATES], aggregation.surrogate_options),
        ("exchange.downlink_options", [CODECS[exchange.downlink_codec]], exchange.downlink_options),
    ]
    for field, rows, given in families:
        if len({option.name for option in given}) < len(given):
            return f"{field}: an option is set twice; keep one of the two"
        try:
            values = allotted(rows, values_of(given))
            for row in rows:
                chosen(row.name, row.options, values[row.name])
        except RankweaveError as error:
            return f"{field}: {error}"
    return ""


def _local_methods_fit(config: ExperimentConfig) -> str:
    """Refuse local methods that train or keep something else than the aggregator expects."""
    row = AGGREGATORS[config.aggregation.name]
    rows = [LOCAL_METHODS[name] for name in config.training.local_methods]
    frozen = [method for method in rows if method.trains != "both"]
    if len(frozen) > 1:
        return f"training.local_methods: {' and '.join(m.name for m in frozen)} freeze factors both; keep one of them"
    for method in frozen:
        if row.sends not in {"both", method.trains}:
            return (
                f"training.local_methods: with {row.name} clients send factor {row.sends} alone, which {method.name} "
                "does not train every round; use lora, or another aggregator"
            )
    guards, penalties = [m.name for m in rows if m.guards_examples], [m.name for m in rows if m.penalises]
    partial = [m.name for m in rows if m.leaves_out]
    if guards and partial:
        return (
            f"training.local_methods: {guards[0]} clips by all slots' gradients, and {partial[0]} trains without some; "
            "keep one of them"
        )
    if guards and penalties:
        return (
            f"training.local_methods: {guards[0]} sees the task's gradients alone, and {penalties[0]} adds to the loss; "
            "keep one of them"
        )
    return _pruning_fits(config, row, [method.name for method in rows if method.prunes])


def _pruning_fits(config: ExperimentConfig, row: Aggregator, pruning: list[str]) -> str:
    listens = PRUNE_SCHEDULER in config.ranks.schedulers
    if listens and not pruning:
        return (
            f"ranks.schedulers: {PRUNE_SCHEDULER} follows clients that prune; add it to training.local_methods as well"
        )
    if pruning and not listens:
        return f"training.local_methods: {pruning[0]} lowers ranks that nobody follows; add it to ranks.schedulers too"
    if pruning and not row.mixed_ranks:
        return f"training.local_methods: {pruning[0]} makes ranks unequal, and {row.name} needs equal ones; use hetlora"
    return ""


def _method_has_what_it_needs(config: ExperimentConfig) -> str:
    """Refuse what a method cannot honour, by what its row promises."""
    row, aggregation = AGGREGATORS[config.aggregation.name], config.aggregation
    if row.sends == "a":
        if config.training.validation_frac == 0:
            return (
                f"aggregation.name: with {row.name} clients keep factor b at home, so only they can measure quality; set "
                "training.validation_frac above 0"
            )
        if aggregation.weighting == "ranked":
            return f"aggregation.weighting: ranked goes by the norm of products, and {row.name} is sent none; use by_examples"
        if aggregation.clusters.enabled:
            return f"aggregation.clusters: {row.name} is sent no products, which clusters compare; turn them off"
    if aggregation.robust != NO_RULE and (reason := misfit(ROBUST_RULES[aggregation.robust], row)):
        return f"aggregation.robust: {reason}"
    return ""


def _robust_rule_has_clients(config: ExperimentConfig) -> str:
    aggregation = config.aggregation
    if aggregation.robust == NO_RULE:
        return ""
    rule = ROBUST_RULES[aggregation.robust]
    fewest = rule.fewest_updates(values_of(aggregation.robust_options))
    if config.cohort.quorum < fewest:
        return f"cohort.quorum: {aggregation.robust} needs {fewest} updates or more; raise it, or use another rule"
    if fewest > 1 and aggregation.clusters.enabled:
        return (
            f"aggregation.robust: {aggregation.robust} needs {fewest} updates, and a cluster may have fewer; use a rule "
            "that takes any number, such as geometric_median"
        )
    return ""


def _clusters_fit_clients(config: ExperimentConfig) -> str:
    clusters, clients = config.aggregation.clusters, config.data.partition.num_clients
    if clusters.enabled and clients and clusters.num_clusters > clients:
        return f"aggregation.clusters.num_clusters: {clusters.num_clusters} is above the {clients} clients; lower it"
    return ""


def _personal_adapter_fits(config: ExperimentConfig) -> str:
    row = AGGREGATORS[config.aggregation.name]
    if not config.training.keeps_personal:
        return ""
    if config.training.validation_frac == 0:
        return "training.personal: fusion is searched on each client's validation share; set training.validation_frac"
    if row.downlink != "slice" or row.sends != "both":
        return (
            f"training.personal: needs a global adapter that clients hold whole on an unchanged base, which {row.name} "
            "does not give; use rbla or raflora"
        )
    return ""


def _privacy_fits(config: ExperimentConfig) -> str:
    """Refuse what the noise would not cover."""
    if config.privacy.mode == "none":
        return ""
    aggregation, cohort = config.aggregation, config.cohort
    means = [name for name, row in AGGREGATORS.items() if row.noisable]
    schedulers = [name for name, row in RANK_SCHEDULERS.items() if not row.follows_clients]
    uncovered = {
        f"aggregation.name: the noise is made for the means of {', '.join(means)}; use one of them": (
            aggregation.name not in means
        ),
        "aggregation.weighting: weights move the sum by more than the clip; use uniform": (
            aggregation.weighting != "uniform"
        ),
        "aggregation.robust: a robust rule looks at single updates; leave it out": aggregation.robust != NO_RULE,
        "aggregation.clusters: clusters compare single updates; turn them off": aggregation.clusters.enabled,
        "cohort.overshoot: who takes part is drawn once and for all; set it to 0": cohort.overshoot > 0,
        "cohort.quorum: a round must not tell by failing that few were drawn; leave it at 1": cohort.quorum > 1,
        f"ranks.schedulers: ranks must not tell who took part; use {' or '.join(schedulers)}": (
            not set(config.ranks.schedulers) <= set(schedulers)
        ),
        "evaluation.diagnostics: they show figures of single updates; turn them off": config.evaluation.diagnostics,
        "cohort.byte_budget_mb: a run must not tell by its end how many were drawn; set it to 0": (
            cohort.byte_budget_mb > 0
        ),
    }
    return next((reason for reason, applies in uncovered.items() if applies), "")


def _weighting_has_quality(config: ExperimentConfig) -> str:
    if config.aggregation.weighting == "ranked" and config.training.validation_frac == 0:
        return (
            "aggregation.weighting: ranked needs each client's validation quality; set training.validation_frac above 0"
        )
    return ""


def _source_fits_model(config: ExperimentConfig) -> str:
    source, kind = config.data.source, config.model.kind
    if source in {"digits", "idx"} and kind not in _IMAGE_KINDS:
        return (
            f"data.source: {source} holds images, model.kind {kind} reads text; use {', '.join(sorted(_IMAGE_KINDS))}"
        )
    if source != "digits" and not config.data.location:
        return f"data.location: source {source} needs a file, a folder or a hub id"
    return ""


def _model_has_location(config: ExperimentConfig) -> str:
    if config.model.kind not in _OWN_NETWORKS and not config.model.location:
        return f"model.location: kind {config.model.kind} needs a hub id or a local folder"
    return ""


def _natural_has_column(config: ExperimentConfig) -> str:
    partition = config.data.partition
    if partition.name == "natural" and not partition.column:
        return "data.partition.column: the natural partition needs the column that names the clients"
    if partition.name != "natural" and partition.num_clients == 0:
        return "data.partition.num_clients: 0 means all clients of a natural partition; give a number here"
    return ""


def _metric_fits_model(config: ExperimentConfig) -> str:
    known = _LANGUAGE_METRICS if config.model.kind == "causal_lm" else _CLASS_METRICS
    if config.metric not in known:
        return (
            f"evaluation.metric: {config.metric} does not exist for {config.model.kind}; use {', '.join(sorted(known))}"
        )
    return ""


_RULES: tuple[Callable[[ExperimentConfig], str], ...] = (
    _quorum_fits,
    _names_are_chosen_once,
    _ranks_fit_aggregator,
    _spectra_have_one_model,
    _options_fit_methods,
    _local_methods_fit,
    _method_has_what_it_needs,
    _robust_rule_has_clients,
    _clusters_fit_clients,
    _personal_adapter_fits,
    whole_model_fits,
    _privacy_fits,
    *EXCHANGE_RULES,
    _weighting_has_quality,
    _source_fits_model,
    _model_has_location,
    _natural_has_column,
    _metric_fits_model,
)


def problem_of(config: ExperimentConfig) -> str:
    """Return why the sections of a config do not fit together; empty when they do."""
    return next((problem for rule in _RULES if (problem := rule(config))), "")

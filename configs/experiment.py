"""An experiment: the one parameter of the training flow, and the rules that span its sections."""

from collections.abc import Callable

from pydantic import Field, model_validator

from configs.forms import FormModel
from configs.sections import (
    NO_RULE,
    AggregationConfig,
    CohortConfig,
    DataConfig,
    DispatchConfig,
    EvaluationConfig,
    ExchangeConfig,
    MethodOption,
    ModelConfig,
    PublishingConfig,
    RanksConfig,
    TrainingConfig,
)
from tasks.aggregators.robust.table import ROBUST_RULES, misfit
from tasks.aggregators.table import AGGREGATORS
from tasks.errors import RankweaveError
from tasks.options import HasOptions, chosen

_OWN_NETWORKS = {"mlp", "cnn"}
_IMAGE_KINDS = {*_OWN_NETWORKS, "image_classification"}
_LANGUAGE_METRICS = {"loss", "perplexity", "token_accuracy"}
_CLASS_METRICS = {"accuracy", "macro_f1", "loss"}


class ExperimentConfig(FormModel):
    """A federated fine-tuning run."""

    name: str = Field(
        default="digits",
        pattern=r"^[a-z0-9][a-z0-9-]{0,59}$",
        title="Name",
        description="Name of the experiment and of its runs: a-z, 0-9 and dashes.",
    )
    rounds: int = Field(default=10, ge=1, le=100_000, title="Rounds", description="Rounds to train [rounds].")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed", description="Where every random draw comes from.")
    data: DataConfig = Field(default=DataConfig(), title="Data")
    model: ModelConfig = Field(default=ModelConfig(), title="Model")
    ranks: RanksConfig = Field(default=RanksConfig(), title="Ranks")
    cohort: CohortConfig = Field(default=CohortConfig(), title="Cohort")
    dispatch: DispatchConfig = Field(default=DispatchConfig(), title="Dispatch")
    training: TrainingConfig = Field(default=TrainingConfig(), title="Training")
    exchange: ExchangeConfig = Field(default=ExchangeConfig(), title="Exchange")
    aggregation: AggregationConfig = Field(default=AggregationConfig(), title="Aggregation")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), title="Evaluation")
    publishing: PublishingConfig = Field(default=PublishingConfig(), title="Publishing")
    resume_run: str = Field(
        default="", title="Resume", description="Id of a run to go on with; empty starts a new one."
    )

    @property
    def metric(self) -> str:
        """The figure this run is judged by."""
        if self.evaluation.metric != "auto":
            return self.evaluation.metric
        return "loss" if self.model.kind == "causal_lm" else "accuracy"

    @property
    def model_name(self) -> str:
        """Name in the model registry."""
        return self.publishing.model_name or self.name

    @model_validator(mode="after")
    def _sections_fit_together(self) -> "ExperimentConfig":
        for rule in _RULES:
            if problem := rule(self):
                raise ValueError(problem)
        return self


def _quorum_fits(config: ExperimentConfig) -> str:
    clients = config.data.partition.num_clients
    invited = config.cohort.cohort_size + config.cohort.overshoot if config.cohort.cohort_size else clients
    invited = min(invited, clients) if clients else invited
    if invited and config.cohort.quorum > invited:
        return f"cohort.quorum: {config.cohort.quorum} is above the {invited} clients invited; lower it or invite more"
    return ""


def _ranks_fit_aggregator(config: ExperimentConfig) -> str:
    row = AGGREGATORS[config.aggregation.name]
    if not row.mixed_ranks and config.ranks.scheduler != "fixed":
        return f"ranks.scheduler: {row.name} needs ranks that are equal and stay so; use fixed, or another aggregator"
    if not row.mixed_ranks and len(set(config.ranks.client_fractions)) > 1:
        return (
            f"aggregation.name: {config.aggregation.name} needs equal ranks, ranks.client_fractions has "
            f"{len(set(config.ranks.client_fractions))} different ones; use rbla, or one fraction for all"
        )
    return ""


def _options_fit_methods(config: ExperimentConfig) -> str:
    aggregation = config.aggregation
    rows: list[tuple[HasOptions, list[MethodOption], str]] = [
        (AGGREGATORS[aggregation.name], aggregation.options, "options")
    ]
    if aggregation.robust != NO_RULE:
        rows.append((ROBUST_RULES[aggregation.robust], aggregation.robust_options, "robust_options"))
    elif aggregation.robust_options:
        return "aggregation.robust_options: there is no robust rule to take them; set aggregation.robust"
    for row, given, field in rows:
        if len({option.name for option in given}) < len(given):
            return f"aggregation.{field}: an option is set twice; keep one of the two"
        try:
            chosen(row.name, row.options, {option.name: option.value for option in given})
        except RankweaveError as error:
            return f"aggregation.{field}: {error}"
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
    fewest = rule.fewest_updates({option.name: option.value for option in aggregation.robust_options})
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
    if not config.training.personal.enabled:
        return ""
    if config.training.validation_frac == 0:
        return "training.personal: fusion is searched on each client's validation share; set training.validation_frac"
    if row.downlink != "slice" or row.sends != "both":
        return (
            f"training.personal: needs a global adapter that clients hold whole on an unchanged base, which {row.name} "
            "does not give; use rbla or raflora"
        )
    return ""


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
    _ranks_fit_aggregator,
    _options_fit_methods,
    _method_has_what_it_needs,
    _robust_rule_has_clients,
    _clusters_fit_clients,
    _personal_adapter_fits,
    _weighting_has_quality,
    _source_fits_model,
    _model_has_location,
    _natural_has_column,
    _metric_fits_model,
)

"""How updates become one adapter, or one for each cluster of clients."""

from typing import Annotated

from pydantic import Field

from configs.forms import FormModel, NameIn
from configs.sections.options import MethodOption, SurrogateOption
from tasks.aggregators.robust.table import ROBUST_RULES
from tasks.aggregators.table import AGGREGATORS
from tasks.aggregators.weightings import WEIGHTINGS

NO_RULE = "none"


class ClustersConfig(FormModel):
    """Several tasks in one run: clients with like adapters share one, each cluster is a model of its own."""

    enabled: bool = Field(
        default=False,
        title="Cluster clients",
        description="One global adapter for each cluster of clients instead of one for all.",
    )
    num_clusters: int = Field(
        default=0,
        ge=0,
        le=1000,
        title="Clusters",
        description="Number of clusters; 0 chooses by how well they are apart [clusters].",
    )
    max_clusters: int = Field(
        default=8, ge=2, le=1000, title="Most clusters", description="Largest number that may be chosen [clusters]."
    )
    decay: float = Field(
        default=0.5,
        ge=0.0,
        le=0.99,
        title="Memory",
        description="Share of the similarity of earlier rounds that is kept [fraction].",
    )


class AggregationConfig(FormModel):
    """How updates become one adapter."""

    name: Annotated[str, NameIn("aggregator", AGGREGATORS)] = Field(
        default="rbla",
        title="Aggregator",
        description="How adapters of unequal rank are woven.",
    )
    weighting: Annotated[str, NameIn("weighting", WEIGHTINGS)] = Field(
        default="by_examples",
        title="Weighting",
        description="Who counts how much.",
    )
    options: list[MethodOption] = Field(
        default=[], title="Options", description="Options of the aggregator that differ from their defaults."
    )
    robust: Annotated[str, NameIn("robust rule", {NO_RULE: None, **ROBUST_RULES})] = Field(
        default=NO_RULE,
        title="Robust rule",
        description="What guards the aggregate against a few hostile updates.",
    )
    robust_options: list[MethodOption] = Field(
        default=[],
        title="Options of the robust rule",
        description="Options of the robust rule that differ from their defaults.",
    )
    surrogates: bool = Field(
        default=False,
        title="Surrogates",
        description="Received clients stand in for missing ones that trained alike before; otherwise the mean is taken "
        "over those who came.",
    )
    surrogate_options: list[SurrogateOption] = Field(
        default=[],
        title="Options of surrogates",
        description="Options of surrogates that differ from their defaults.",
    )
    clusters: ClustersConfig = Field(default=ClustersConfig(), title="Clusters")

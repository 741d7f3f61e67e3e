"""An experiment: the one parameter of the training flow."""

from pydantic import Field, model_validator

from configs.forms import FormModel
from configs.rules import problem_of
from configs.sections import (
    AggregationConfig,
    CohortConfig,
    DataConfig,
    DispatchConfig,
    EvaluationConfig,
    ExchangeConfig,
    ModelConfig,
    PrivacyConfig,
    PublishingConfig,
    RanksConfig,
    TrainingConfig,
)


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
    privacy: PrivacyConfig = Field(default=PrivacyConfig(), title="Privacy")
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
        if problem := problem_of(self):
            raise ValueError(problem)
        return self

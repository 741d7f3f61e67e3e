"""How a global adapter is judged, and where it goes from there."""

from typing import Literal

from pydantic import Field, model_validator

from configs.forms import FormModel


class EvaluationConfig(FormModel):
    """How the server judges a global adapter."""

    metric: Literal["auto", "accuracy", "macro_f1", "loss", "perplexity", "token_accuracy"] = Field(
        default="auto",
        title="Metric",
        description="The figure a run is judged by; auto: accuracy, or loss for language models.",
    )
    batch_size: int = Field(
        default=256, ge=1, le=65_536, title="Batch size", description="Examples per evaluation step [examples]."
    )
    prefix_ladder: bool = Field(
        default=True, title="Prefix ladder", description="Also evaluate the adapter cut to each rank in use."
    )
    diagnostics: bool = Field(
        default=True,
        title="Diagnostics",
        description="Measure every aggregate: error against the exact mean, coverage and energy by rank.",
    )
    target: float = Field(
        default=0.0,
        ge=0.0,
        le=1e9,
        title="Target",
        description="Stop early once the metric reaches this; 0 for never.",
    )


class PublishingConfig(FormModel):
    """What goes into the model registry."""

    model_name: str = Field(
        default="", title="Model name", description="Name in the registry; empty for the experiment's name."
    )
    crown_first: bool = Field(
        default=True,
        title="Crown the first",
        description="Make this run's last version champion if the model has none yet.",
    )

    @model_validator(mode="after")
    def _plain_name(self) -> "PublishingConfig":
        if any(c in self.model_name for c in "/:"):
            raise ValueError("model_name may not hold '/' or ':': MLflow could not address it")
        return self

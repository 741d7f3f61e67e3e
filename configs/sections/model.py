"""The base model and what is adapted of it."""

from typing import Annotated, Literal

from pydantic import Field

from configs.forms import FormModel, NameIn
from tasks.training.models import MODEL_KINDS


class LoraConfig(FormModel):
    """What is adapted and how."""

    target_modules: list[str] = Field(
        default=[],
        title="Target modules",
        description="Module names that get a LoRA pair; empty for the model's usual ones.",
    )
    alpha: float = Field(
        default=0.0,
        ge=0.0,
        le=100_000.0,
        title="Alpha",
        description="Numerator of the scale; 0 lets alpha follow the rank, so the scale is 1.",
    )
    use_rslora: bool = Field(
        default=False, title="rsLoRA", description="Divide by the root of the rank instead of the rank."
    )
    dropout: float = Field(
        default=0.0, ge=0.0, le=0.95, title="Dropout", description="Dropout on a pair's input [fraction]."
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        default="none", title="Biases", description="Which biases are trained as well."
    )
    modules_to_save: list[str] = Field(
        default=[],
        title="Modules trained whole",
        description="Heads and norms trained in full; a new classification head is always among them.",
    )
    whole_model: bool = Field(
        default=False,
        title="Whole model",
        description="Train and send every weight: full fine-tuning, without low ranks; only with fedavg.",
    )


class ModelConfig(FormModel):
    """The base model that all clients hold."""

    kind: Annotated[str, NameIn("model kind", MODEL_KINDS)] = Field(
        default="mlp",
        title="Kind",
        description="A small network of ours, or a transformers model by its task.",
    )
    location: str = Field(default="", title="Location", description="Hub id or local folder of a transformers model.")
    revision: str = Field(default="", title="Revision", description="Commit or tag on the hub; empty for the newest.")
    hidden_sizes: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(
        default=[200, 200], title="Hidden sizes", description="Widths of the small network's hidden layers [units]."
    )
    max_length: int = Field(
        default=128, ge=1, le=1_000_000, title="Longest text", description="Longer texts are cut [tokens]."
    )
    lora: LoraConfig = Field(default=LoraConfig(), title="LoRA")

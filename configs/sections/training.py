"""What a client does with its data."""

from typing import Annotated, Literal

from pydantic import Field

from configs.forms import FormModel, NameIn
from configs.sections.options import TrainingOption
from tasks.local_methods.table import LOCAL_METHODS


class OptimizerConfig(FormModel):
    """The local optimiser."""

    name: Literal["adam", "adamw", "sgd"] = Field(
        default="adam", title="Update rule", description="How gradients become steps."
    )
    learning_rate: float = Field(default=1e-3, ge=1e-9, le=100.0, title="Learning rate", description="Step size.")
    momentum: float = Field(default=0.9, ge=0.0, le=0.9999, title="Momentum", description="Momentum of sgd.")
    weight_decay: float = Field(
        default=0.0, ge=0.0, le=10.0, title="Weight decay", description="Decay of the trained weights."
    )
    max_grad_norm: float = Field(
        default=0.0, ge=0.0, le=1e6, title="Gradient clip", description="Largest gradient norm; 0 for no clipping."
    )


class PersonalConfig(FormModel):
    """The second adapter that clients keep to themselves with fdlora, joined with the global one at the end."""

    refresh_every: int = Field(
        default=5,
        ge=0,
        le=100_000,
        title="Refresh",
        description="Start the personal adapter again from the global one after this many rounds; 0 for never "
        "[rounds].",
    )
    fusion: Literal["cat", "svd", "factors"] = Field(
        default="cat",
        title="Fusion",
        description="cat: the weighted sum of both products, exactly; svd: that, cut to the client's rank; factors: "
        "the weighted sums of the factors, with cross terms.",
    )
    budget: int = Field(
        default=40,
        ge=2,
        le=100_000,
        title="Evaluations",
        description="Weights that the search may try on a client's validation share [evaluations].",
    )


class TrainingConfig(FormModel):
    """What a client does with its data."""

    local_methods: list[Annotated[str, NameIn("local method", LOCAL_METHODS)]] = Field(
        default=["lora"],
        min_length=1,
        title="Local methods",
        description="What is added to plain LoRA training; several add up.",
    )
    options: list[TrainingOption] = Field(
        default=[], title="Options", description="Options of the local methods that differ from their defaults."
    )
    epochs: int = Field(
        default=1, ge=1, le=10_000, title="Epochs", description="Passes over the client's data in a round."
    )
    max_steps: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        title="Largest number of steps",
        description="Stop after this many steps; 0 for whole epochs [steps].",
    )
    batch_size: int = Field(
        default=64, ge=1, le=65_536, title="Batch size", description="Examples per step and accumulation [examples]."
    )
    accumulation_steps: int = Field(
        default=1, ge=1, le=65_536, title="Accumulation", description="Batches per optimiser step [batches]."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", title="Precision", description="auto: bf16 where the hardware has it."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", title="Device", description="auto: a GPU where there is one."
    )
    cpu_threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        title="CPU threads",
        description="Threads of torch while training; 0 leaves them as they are [threads].",
    )
    validation_frac: float = Field(
        default=0.0,
        ge=0.0,
        le=0.5,
        title="Validation share",
        description="Share of a client's data kept for its own validation [fraction].",
    )
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), title="Optimiser")
    personal: PersonalConfig = Field(default=PersonalConfig(), title="Personal adapter")

    @property
    def keeps_personal(self) -> bool:
        """Whether clients train a second adapter that never leaves them."""
        return any(LOCAL_METHODS[name].keeps_personal for name in self.local_methods)

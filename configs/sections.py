"""The sections of an experiment: one form box each. Bounds are inclusive because the form knows no others."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.forms import FormModel, NameIn
from tasks.aggregators.table import AGGREGATORS
from tasks.aggregators.weightings import WEIGHTINGS
from tasks.codecs.table import CODECS
from tasks.data.partitions import PARTITIONS
from tasks.data.sources import SOURCES
from tasks.local_methods.table import LOCAL_METHODS
from tasks.rank_schedulers.table import RANK_SCHEDULERS
from tasks.training.models import MODEL_KINDS

Fraction = Annotated[float, Field(ge=0.001, le=1.0)]


class ColumnsConfig(FormModel):
    """Which columns of a table hold what."""

    text: str = Field(default="text", title="Text column", description="Column with the text to classify or to learn.")
    text_pair: str = Field(
        default="", title="Second text column", description="Second text of a pair; empty for single texts."
    )
    label: str = Field(
        default="label", title="Label column", description="Column with the class, as a name or a number."
    )
    prompt: str = Field(
        default="", title="Prompt column", description="Text the model is given but not trained on; empty for none."
    )
    image: str = Field(default="image", title="Image column", description="Column with the picture.")


class PartitionConfig(FormModel):
    """How a data set is dealt to simulated clients."""

    name: Annotated[str, NameIn("partition", PARTITIONS)] = Field(
        default="staircase",
        title="Kind",
        description="How examples are dealt to clients.",
    )
    num_clients: int = Field(
        default=10,
        ge=0,
        le=10_000,
        title="Clients",
        description="Number of clients; 0 with a natural partition means all.",
    )
    alpha: float = Field(
        default=0.5,
        ge=0.001,
        le=1000.0,
        title="Dirichlet alpha",
        description="Smaller is more uneven; dirichlet only.",
    )
    labels_per_client: int = Field(
        default=2,
        ge=1,
        le=1000,
        title="Labels per client",
        description="Classes each client holds; pathological only.",
    )
    shards_per_client: int = Field(
        default=2, ge=1, le=1000, title="Shards per client", description="Shards dealt to each client; shards only."
    )
    column: str = Field(
        default="", title="Client column", description="Column whose values are the clients; natural only."
    )
    min_examples: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        title="Fewest examples",
        description="Fewest examples a client may hold [examples].",
    )


class DataConfig(FormModel):
    """Where the examples come from."""

    source: Annotated[str, NameIn("data source", SOURCES)] = Field(
        default="digits",
        title="Source",
        description="Bundled digits, idx files, or anything the datasets library reads.",
    )
    location: str = Field(
        default="", title="Location", description="File, folder or hub id; not needed for the bundled digits."
    )
    train_split: str = Field(
        default="train", title="Training split", description="Name of the split clients learn from."
    )
    test_split: str = Field(
        default="test", title="Test split", description="Name of the split the server evaluates on."
    )
    test_frac: float = Field(
        default=0.25,
        ge=0.01,
        le=0.9,
        title="Test share",
        description="Share held out where the data have no test split [fraction].",
    )
    limit: int = Field(
        default=0,
        ge=0,
        le=100_000_000,
        title="Limit",
        description="Use only this many training examples, 0 for all [examples].",
    )
    columns: ColumnsConfig = Field(default=ColumnsConfig(), title="Columns")
    partition: PartitionConfig = Field(default=PartitionConfig(), title="Partition")


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


class ModuleRankConfig(FormModel):
    """One module's own largest rank."""

    module: str = Field(title="Module", description="Path of the module, or the end of it.")
    max_rank: int = Field(ge=1, le=65_536, title="Largest rank", description="Rank of a client with the largest rank.")


class RanksConfig(FormModel):
    """Which rank each client trains at."""

    scheduler: Annotated[str, NameIn("rank scheduler", RANK_SCHEDULERS)] = Field(
        default="fixed",
        title="Scheduler",
        description="How ranks change over the rounds.",
    )
    max_rank: int = Field(
        default=16,
        ge=1,
        le=65_536,
        title="Largest rank",
        description="Rank of the global adapter; a layer never gets more than its own size allows.",
    )
    client_fractions: list[Fraction] = Field(
        default=[1.0],
        min_length=1,
        title="Client fractions",
        description="Share of the largest rank for each client in turn, repeated when there are more clients [fraction].",
    )
    module_ranks: list[ModuleRankConfig] = Field(
        default=[], title="Module ranks", description="Modules whose largest rank differs."
    )


class CohortConfig(FormModel):
    """Who takes part in a round and how long it waits."""

    cohort_size: int = Field(
        default=0,
        ge=0,
        le=100_000,
        title="Cohort size",
        description="Clients wanted in a round; 0 means all [clients].",
    )
    overshoot: int = Field(
        default=0,
        ge=0,
        le=100_000,
        title="Overshoot",
        description="Extra clients invited to make up for no-shows [clients].",
    )
    quorum: int = Field(
        default=1,
        ge=1,
        le=100_000,
        title="Quorum",
        description="Fewest accepted updates for a valid round [clients].",
    )
    deadline_s: float = Field(
        default=3600.0, ge=0.1, le=604_800.0, title="Deadline", description="A round waits no longer than this [s]."
    )
    grace_s: float = Field(
        default=600.0,
        ge=0.0,
        le=604_800.0,
        title="Grace",
        description="Once quorum is there, wait at most this much longer [s].",
    )
    max_failed_rounds: int = Field(
        default=0,
        ge=0,
        le=10_000,
        title="Failed rounds allowed",
        description="The run stops when more rounds than this miss their quorum [rounds].",
    )


class DispatchConfig(FormModel):
    """Where clients run."""

    mode: Literal["inline", "pools", "external"] = Field(
        default="inline",
        title="Mode",
        description="inline: simulated in the server's own process; pools: one run each on a Prefect work pool; external: sites start their own client-update runs.",
    )
    inline_workers: int = Field(
        default=1,
        ge=1,
        le=256,
        title="Inline workers",
        description="Clients that train at once in the server's process [threads].",
    )
    deployment: str = Field(
        default="client-update/local",
        title="Deployment",
        description="Deployment that runs a client on its pool; pools only.",
    )


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


class TrainingConfig(FormModel):
    """What a client does with its data."""

    local_method: Annotated[str, NameIn("local method", LOCAL_METHODS)] = Field(
        default="lora",
        title="Local method",
        description="What is added to plain LoRA training.",
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


class ExchangeConfig(FormModel):
    """How adapters are encoded on the way."""

    uplink_codec: Annotated[str, NameIn("codec", CODECS)] = Field(
        default="fp32", title="Uplink codec", description="Encoding of updates."
    )
    downlink_codec: Annotated[str, NameIn("codec", CODECS)] = Field(
        default="fp32", title="Downlink codec", description="Encoding of shares."
    )


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

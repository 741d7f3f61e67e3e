"""Where the examples come from, and which client holds which."""

from typing import Annotated

from pydantic import Field

from configs.forms import FormModel, NameIn
from tasks.data.partitions import PARTITIONS
from tasks.data.sources import SOURCES


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

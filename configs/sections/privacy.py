"""What hides a client's part in the global adapter."""

from typing import Literal

from pydantic import Field

from configs.forms import FormModel


class PrivacyConfig(FormModel):
    """Differential privacy of clients: changes are clipped, and their sum is noised on the server."""

    mode: Literal["none", "clients"] = Field(
        default="none",
        title="Hides",
        description="none, or clients: whether a client took part, from whoever sees the global adapters.",
    )
    clip_norm: float = Field(
        default=1.0,
        ge=1e-9,
        le=1e9,
        title="Clip",
        description="Largest 2-norm of a client's change, over all that it trained [2-norm].",
    )
    noise_multiplier: float = Field(
        default=1.0,
        ge=0.01,
        le=1000.0,
        title="Noise",
        description="Standard deviation of the noise of the sum [multiples of the clip].",
    )
    target_epsilon: float = Field(
        default=8.0,
        ge=0.0,
        le=1e6,
        title="Budget",
        description="The run stops before the round that would spend more; 0 for no limit [epsilon].",
    )
    delta: float = Field(
        default=1e-5,
        ge=1e-15,
        le=0.1,
        title="Delta",
        description="Probability that the promise does not hold; well below one over the number of clients.",
    )
    secure_aggregation: bool = Field(
        default=False,
        title="Secure aggregation",
        description="The server sees sums only. Refused today: docs/threat-model.md says why.",
    )

from collections.abc import Iterator

import pytest
import torch

from tasks.training.models import BaseModel, load_base
from tests.local_methods.cases import LORA
from tests.training.pico import spec_of


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, BaseModel]:
    """One small model of every kind of layer that can be adapted."""
    return {kind: load_base(spec_of(kind, tmp_path_factory.mktemp(kind))) for kind in LORA}


@pytest.fixture(params=LORA)
def base(request, bases) -> BaseModel:
    return bases[request.param]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: on models this small a second one only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

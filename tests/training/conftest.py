from collections.abc import Iterator

import pytest
import torch

from tasks.training.models import BaseModel, load_base
from tests.training.pico import KINDS, spec_of


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, BaseModel]:
    """One small model of every kind, loaded through the real loaders."""
    return {kind: load_base(spec_of(kind, tmp_path_factory.mktemp(kind))) for kind in KINDS}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: on models this small a second one only waits, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=KINDS)
def base(request, bases) -> BaseModel:
    return bases[request.param]

"""Published data sets, read and shared out by the code that runs use."""

import time

import numpy as np
import pytest

from tasks.data.partitions import PARTITIONS, PartitionSpec, partition
from tasks.data.prepare import prepare_examples
from tasks.data.sources import SourceSpec, read_source
from tasks.errors import DataError

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("hub_cache")]


@pytest.fixture(scope="module")
def mnist():
    import os

    folder = os.environ.get("RANKWEAVE_DATA")
    if not folder:
        pytest.skip("RANKWEAVE_DATA names no folder of real data sets")
    return read_source("idx", SourceSpec(location=f"{folder}/mnist"))


def test_mnist_has_its_published_counts(mnist):
    published = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.train.labels).tolist() == published
    assert mnist.test.images.shape == (10000, 28, 28)
    assert mnist.train.images.max() == 1.0
    assert abs(float(mnist.train.images.mean()) - 0.1307) < 1e-4


def test_mnist_staircase_leaves_the_nines_to_the_last_client(mnist):
    spec = PartitionSpec("staircase", 10)
    parts = partition(spec, labels=mnist.train.labels, columns={}, seed=0).indices
    assert len(parts["c00"]) == 592
    assert np.bincount(mnist.train.labels[parts["c08"]], minlength=10)[8:].tolist() == [2925, 0]
    assert np.bincount(mnist.train.labels[parts["c09"]], minlength=10)[8:].tolist() == [2926, 5949]


@pytest.mark.parametrize("name", [name for name in PARTITIONS if name != "natural"])
def test_mnist_over_a_hundred_clients_takes_well_under_a_second(mnist, name):
    started = time.perf_counter()
    parts = partition(PartitionSpec(name, 100), labels=mnist.train.labels, columns={}, seed=0).indices
    assert time.perf_counter() - started < 1.0
    assert sum(len(part) for part in parts.values()) == 60000


def test_mnist_becomes_pixels_of_the_shape_a_model_asks_for(mnist):
    examples = prepare_examples(mnist.test, kind="cnn", input_shape=(1, 28, 28))
    assert examples.batch(np.arange(64))["pixel_values"].shape == (64, 1, 28, 28)


def test_clinc_domains_are_natural_clients(real_data):
    data = read_source("hub", SourceSpec(location=str(real_data / "clinc150"), text_column="text"))
    assert (len(data.train), len(data.test), len(data.label_names)) == (15000, 4500, 150)
    spec = PartitionSpec("natural", 0, column="domain")
    found = partition(spec, labels=data.train.labels, columns=data.train.columns, seed=0)
    assert {len(part) for part in found.indices.values()} == {1500}
    assert found.origins["c01"] == "banking"
    assert {len(np.unique(data.train.labels[part])) for part in found.indices.values()} == {15}


def test_clinc_out_of_scope_queries_are_refused(real_data):
    spec = SourceSpec(location=str(real_data / "clinc150"), text_column="text", test_split="oos_test")
    with pytest.raises(DataError, match=r"data\.columns\.label: split 'oos_test' has a negative label"):
        read_source("hub", spec)


def test_agnews_reads_from_one_file_and_from_its_folder(real_data):
    folder = read_source("hub", SourceSpec(location=str(real_data / "agnews"), text_column="text"))
    assert np.bincount(folder.train.labels).tolist() == [2506, 2456, 2485, 2530]
    assert np.bincount(folder.test.labels).tolist() == [1900] * 4
    spec = SourceSpec(location=str(real_data / "agnews" / "train.jsonl.gz"), text_column="text", test_fraction=0.2)
    cut = read_source("hub", spec)
    assert (len(cut.train), len(cut.test)) == (7981, 1996)
    assert set(cut.train.texts) | set(cut.test.texts) == set(folder.train.texts)


def test_dolly_trains_a_causal_model_on_prompts_and_replies(real_data):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(real_data / "stories260k")
    spec = SourceSpec(
        location=str(real_data / "dolly15k" / "dolly15k.jsonl.gz"),
        text_column="response",
        prompt_column="instruction",
        label_column="category",
        limit=50,
    )
    data = read_source("hub", spec)
    short = [row for row, prompt in enumerate(data.train.prompts) if len(prompt) < 100]
    split = type(data.train)(
        texts=[data.train.texts[row] for row in short], prompts=[data.train.prompts[row] for row in short]
    )
    examples = prepare_examples(split, kind="causal_lm", processor=tokenizer, max_length=256)
    batch = examples.batch(np.arange(len(examples)))
    learnt = batch["labels"][0] != -100
    reply = tokenizer.decode(batch["input_ids"][0][learnt], skip_special_tokens=True).strip()
    assert split.texts[0].strip().startswith(reply[:20])
    assert not learnt[: len(tokenizer(split.prompts[0])["input_ids"])].any()

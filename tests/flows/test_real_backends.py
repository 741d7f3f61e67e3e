"""The same run over a real S3 server, and with every kind of model and data that users bring."""

import json

import pytest

from configs.loading import load_config
from flows.federated_training import federated_training
from infra.object_store import open_store
from infra.run_store import read_records
from tests.flows.small import small_config
from tests.servers import start_ministack, start_rclone
from tests.training.pico import save_bert, save_llama

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_backend", "home")]

TEXTS = [
    ("good", "a warm and clever film"),
    ("good", "clever fun for all"),
    ("bad", "a dull and cold film"),
    ("bad", "dull and far too long"),
]


@pytest.fixture
def rows(tmp_path):
    """A table of 48 labelled texts from three sites."""
    path = tmp_path / "rows.jsonl"
    lines = [
        {"sentence": f"{text} {i % 5}", "mood": mood, "site": f"site-{i % 3}"}
        for i in range(12)
        for mood, text in TEXTS
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf8")
    return path


def config_of(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf8")
    return load_config(str(path))


@pytest.mark.parametrize("start", [start_ministack, start_rclone], ids=["conditions honoured", "conditions ignored"])
def test_a_run_over_s3_ends_with_the_same_adapter_as_over_a_folder(tmp_path, monkeypatch, start):
    folder = federated_training(small_config())
    (tmp_path / "server").mkdir()
    server = start(tmp_path / "server")
    try:
        for name, value in server.keys.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("RANKWEAVE_STORE", server.url("exchange"))
        summary = federated_training(small_config())
        assert summary.adapter_sha256 == folder.adapter_sha256
        records = read_records(open_store(summary.store_url), summary.run_id)
        assert [r.outcome for r in records] == ["initial", "committed", "committed"]
    finally:
        server.stop()


def test_text_classification_by_site_with_a_head_trained_whole(tmp_path, rows):
    config = config_of(
        tmp_path,
        f"""
name: moods
rounds: 2
data:
  source: hub
  location: {rows}
  columns: {{text: sentence, label: mood}}
  partition: {{name: natural, column: site, num_clients: 0}}
model: {{kind: sequence_classification, location: {save_bert(tmp_path / "bert")}, lora: {{target_modules: [query]}}}}
ranks: {{max_rank: 4, client_fractions: [0.25, 0.5, 1.0]}}
training: {{epochs: 2, batch_size: 8, validation_frac: 0.2, optimizer: {{learning_rate: 0.01}}}}
aggregation: {{name: rbla, weighting: ranked}}
exchange: {{uplink_codec: fp16}}
""",
    )
    summary = federated_training(config)
    records = read_records(open_store(summary.store_url), summary.run_id)
    assert summary.outcome == "committed"
    assert set(summary.metrics) >= {"accuracy", "loss", "macro_f1", "accuracy_at_rank_001", "accuracy_at_rank_002"}
    assert sorted(records[1].weights.values()) == pytest.approx([1 / 6, 2 / 6, 3 / 6]), "weight follows rank of score"
    totals = records[2].totals
    assert totals["no_codec_bytes"] > 0


def test_causal_language_model_with_prompts(tmp_path, rows):
    config = config_of(
        tmp_path,
        f"""
name: completions
rounds: 1
data:
  source: hub
  location: {rows}
  columns: {{text: mood, prompt: sentence}}
  partition: {{name: iid, num_clients: 3}}
model:
  kind: causal_lm
  location: {save_llama(tmp_path / "llama")}
  max_length: 32
  lora: {{alpha: 8, use_rslora: true}}
ranks: {{max_rank: 4, client_fractions: [0.5, 1.0]}}
training: {{epochs: 1, batch_size: 4}}
""",
    )
    summary = federated_training(config)
    assert summary.outcome == "committed"
    assert set(summary.metrics) >= {"loss", "perplexity", "token_accuracy", "loss_at_rank_002"}

import base64
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from PIL import Image

from infra.model_bundle import build_model
from infra.model_registry import CHAMPION, open_registry
from infra.serving import _load_pyfunc
from infra.tracking import open_tracker
from tasks.adapters.lora import LoraAdapter, LoraPair
from tasks.adapters.peft_files import folder_files
from tasks.errors import BaseModelMismatchError, DataError, IntegrityError, ModelError
from tasks.training.adaptation import LoraSpec, adapt, adapted_modules, initial_adapter, load_adapter, peft_config
from tasks.training.models import BaseModelSpec, load_base
from tests.infra.mlflow_stores import fresh_store

# PEFT asks transformers an attribute that transformers is about to rename: their affair.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WORDS = ["the", "film", "was", "good", "bad", "long", "short", "and", "then", "ended"]
DIGITS = BaseModelSpec("mlp", input_shape=(1, 8, 8), hidden_sizes=(24,), num_labels=3, label_names=("a", "b", "c"))


def trained(spec: BaseModelSpec):
    """A base, an adapter whose product is not zero, and the model that wears it, built another way."""
    targets = ("all-linear",) if spec.kind == "image_classification" else ()
    base, lora = load_base(spec), LoraSpec(target_modules=targets)
    ranks = {path: 2 + index % 2 for index, path in enumerate(sorted(adapted_modules(base, lora)))}
    start = initial_adapter(base, lora, ranks, seed=1)
    rng = np.random.default_rng(7)
    pairs = {
        path: LoraPair(p.a, torch.tensor(rng.normal(0, 0.5, p.b.shape), dtype=torch.float32), 1.0, p.form)
        for path, p in start.pairs.items()
    }
    adapter = LoraAdapter(pairs, start.dense)
    model = adapt(base, lora, ranks, seed=2)
    load_adapter(model, adapter)
    return base, folder_files(adapter, peft_config(base, lora, adapter)), model.eval()


def bundle(folder: Path, spec: BaseModelSpec):
    base, files, model = trained(spec)
    built = build_model(folder, files, base_spec=asdict(spec), base_digest=base.digest)
    return built / "data" / "rankweave", model


def tokenizer_in(folder: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", model_max_length=32
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def text_classifier(tmp_path_factory):
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("pico-bert")
    tokenizer_in(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=13, max_position_embeddings=32, pad_token_id=0, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    return BaseModelSpec("sequence_classification", location=str(folder), label_names=("no", "yes"))


@pytest.fixture(scope="module")
def image_classifier(tmp_path_factory):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("pico-vit")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return BaseModelSpec("image_classification", location=str(folder), label_names=("cat", "dog", "frog"))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("pico-llama")
    tokenizer_in(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=13, max_position_embeddings=32, pad_token_id=0, eos_token_id=2, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return BaseModelSpec("causal_lm", location=str(folder))


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(3).random((count, 1, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_pixels_are_classified_as_the_adapted_model_does(tmp_path, kind):
    spec = BaseModelSpec(kind, input_shape=(1, 8, 8), hidden_sizes=(24,), num_labels=3)
    data, model = bundle(tmp_path, spec)
    served = _load_pyfunc(str(data))
    images = pixels(150)
    with torch.inference_mode():
        expected = model(torch.tensor(images)).logits.softmax(-1).max(-1)
    for given in (images, images.reshape(150, 64), pd.DataFrame(images.reshape(150, 64)), images[:, 0]):
        answer = served.predict(given)
        assert list(answer.columns) == ["label", "score"]
        assert answer["label"].tolist() == expected.indices.tolist()
        np.testing.assert_allclose(answer["score"], expected.values, rtol=1e-5)
    assert len(set(expected.values.tolist())) > 100


def test_labels_carry_their_names(tmp_path):
    data, _ = bundle(tmp_path, DIGITS)
    assert set(_load_pyfunc(str(data)).predict(pixels(40))["label"]) <= {"a", "b", "c"}


def test_a_frame_without_its_column_is_refused(tmp_path, text_classifier):
    served = _load_pyfunc(str(bundle(tmp_path, text_classifier)[0]))
    with pytest.raises(DataError, match="column text: is missing; got review"):
        served.predict(pd.DataFrame({"review": ["good"]}))
    with pytest.raises(DataError, match="column text_pair, row 0: must be text"):
        served.predict(pd.DataFrame({"text": ["good"], "text_pair": [1]}))


def test_no_rows_give_no_predictions(tmp_path):
    data, _ = bundle(tmp_path, DIGITS)
    assert _load_pyfunc(str(data)).predict(pixels(0)).to_dict("list") == {"label": [], "score": []}


def test_texts_are_classified_as_the_adapted_model_does(tmp_path, text_classifier):
    data, model = bundle(tmp_path, text_classifier)
    served = _load_pyfunc(str(data))
    texts = ["the film was good", "bad", "long and short and then ended"]
    with torch.inference_mode():
        logits = torch.cat([model(**served.processor(text, return_tensors="pt")).logits for text in texts])
    for given in (pd.DataFrame({"text": texts}), texts, np.array(texts)):
        answer = served.predict(given)
        assert answer["label"].tolist() == [("no", "yes")[i] for i in logits.argmax(-1).tolist()]
        np.testing.assert_allclose(answer["score"], logits.softmax(-1).max(-1).values, rtol=1e-4)
    paired = served.predict(pd.DataFrame({"text": texts, "text_pair": ["bad"] * 3}))
    assert not np.allclose(paired["score"], answer["score"])
    assert len(served.predict(["good " * 500])) == 1


def test_images_are_classified_alike_however_they_come(tmp_path, image_classifier):
    data, model = bundle(tmp_path, image_classifier)
    served = _load_pyfunc(str(data))
    arrays = np.random.default_rng(5).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    files = []
    for array in arrays:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    batch = served.processor(images=[Image.fromarray(array) for array in arrays], return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).logits.softmax(-1).max(-1)
    for given in (
        arrays,
        arrays.transpose(0, 3, 1, 2),
        arrays / 255,
        pd.DataFrame({"image": files}),
        pd.DataFrame({"image": [base64.b64encode(file).decode() for file in files]}),
    ):
        answer = served.predict(given)
        assert answer["label"].tolist() == [("cat", "dog", "frog")[i] for i in expected.indices.tolist()]
        np.testing.assert_allclose(answer["score"], expected.values, rtol=1e-4)


def test_prompts_are_completed_greedily(tmp_path, language_model):
    data, model = bundle(tmp_path, language_model)
    served = _load_pyfunc(str(data))
    prompts = ["the film was", "then"]
    answer = served.predict(pd.DataFrame({"prompt": prompts}), params={"max_new_tokens": 5})
    tokens = served.processor("the film was", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        for _ in range(5):
            tokens = torch.cat([tokens, model(input_ids=tokens).logits[:, -1:].argmax(-1)], dim=1)
            if tokens[0, -1] == 2:
                break
    assert answer["completion"][0] == served.processor.decode(tokens[0, 3:], skip_special_tokens=True)
    assert served.predict(prompts, params={"max_new_tokens": 5}).equals(answer)
    from mlflow.pyfunc import load_model  # after `bundle`: its first import warns

    by_mlflow = load_model(str(data.parent.parent))
    assert by_mlflow.predict(prompts, params={"max_new_tokens": 5}).equals(answer)
    assert not by_mlflow.predict(prompts).equals(answer)
    with pytest.raises(DataError, match="max_new_tokens"):
        served.predict(prompts, params={"max_new_tokens": 0})
    with pytest.raises(DataError, match="column prompt: is missing"):
        served.predict(pd.DataFrame({"text": prompts}))
    with pytest.raises(DataError, match="without any token"):
        served.predict([""])


def test_another_base_model_is_refused(tmp_path):
    data, _ = bundle(tmp_path, DIGITS)
    stored = json.loads((data / "base.json").read_text())
    stored["spec"]["seed"] = 1
    (data / "base.json").write_text(json.dumps(stored))
    with pytest.raises(BaseModelMismatchError, match="base model mlp: has other weights"):
        _load_pyfunc(str(data))


def test_a_base_kept_elsewhere_is_named_at_load_time(tmp_path, text_classifier):
    data, _ = bundle(tmp_path, text_classifier)
    moved = tmp_path / "moved"
    moved.symlink_to(text_classifier.location)
    served = _load_pyfunc(str(data), {"base_location": str(moved)})
    assert served.spec.location == str(moved)
    with pytest.raises(ModelError):
        _load_pyfunc(str(data), {"base_location": str(tmp_path / "absent")})


def test_a_tampered_adapter_is_refused(tmp_path):
    data, _ = bundle(tmp_path, DIGITS)
    weights = data / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match="is not the adapter that was published"):
        _load_pyfunc(str(data))


def test_a_base_that_a_newer_version_described_is_refused(tmp_path):
    data, _ = bundle(tmp_path, DIGITS)
    stored = json.loads((data / "base.json").read_text())
    stored["spec"]["quantisation"] = "nf4"
    (data / "base.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match=r"got quantisation; .*requirements\.txt"):
        _load_pyfunc(str(data))


SCRIPT = """
import json, sys
import mlflow.pyfunc, pandas as pd
model = mlflow.pyfunc.load_model("models:/sentiment@champion")
frame = pd.DataFrame({"text": ["the film was good", "bad"]})
print(json.dumps(model.predict(frame).to_dict("list")))
"""


def test_the_champion_predicts_in_a_fresh_process_without_a_copy_of_the_base(
    tmp_path_factory, tmp_path, text_classifier
):
    store = fresh_store(tmp_path_factory, "serving")
    base, files, _ = trained(text_classifier)
    tracker, registry = open_tracker(store, experiment="serving", run_id="r-1"), open_registry(store)
    version = registry.publish(
        "sentiment",
        mlflow_run_id=tracker.mlflow_run_id,
        round_index=1,
        adapter_files=files,
        base_spec=asdict(text_classifier),
        base_digest=base.digest,
        tags={"aggregator": "rbla"},
    )
    registry.set_alias("sentiment", CHAMPION, version.version)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(tracker.client.download_artifacts(tracker.mlflow_run_id, "adapters/round-001"))
    here = _load_pyfunc(str(folder / "data" / "rankweave")).predict(["the film was good", "bad"])
    there = json.loads(done.stdout.splitlines()[-1])
    assert there["label"] == here["label"].tolist()
    np.testing.assert_allclose(there["score"], here["score"], rtol=1e-5)
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert stored < sum(map(len, files.values())) + 4096


def test_peft_loads_the_published_directory_by_itself(tmp_path):
    data, model = bundle(tmp_path, DIGITS)
    loaded = PeftModel.from_pretrained(load_base(DIGITS).network, str(data / "adapter")).eval()
    images = torch.tensor(pixels(5))
    torch.testing.assert_close(loaded(images).logits, model(images).logits)

"""How a published version predicts: what `mlflow.pyfunc.load_model` calls.

What lives here: rebuilding the base model by reference, checking that it is the right one, putting the adapter
on, predicting. What does not: writing versions (`model_bundle`), reading frames and arrays (`serving_inputs`).
Classifiers return a frame with `label` and `score`, text generation one with `completion`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.model_bundle import BASE_FILE, DEFAULT_MAX_NEW_TOKENS, WEIGHTS_FILE
from infra.serving_inputs import column_names, read_images, read_pixels, read_strings
from tasks.data.causal import joined_prompt
from tasks.errors import BaseModelMismatchError, DataError, IntegrityError, ModelError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from tasks.training.models import BaseModelSpec

_BATCH_SIZE = 64
_MAX_TEXT_TOKENS = 512


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A base model wearing a published adapter.

    Args:
        spec: The base by reference.
        network: The base with the adapter applied, in evaluation mode.
        processor: Tokenizer or image processor; None for mlp and cnn.
        device: Where it runs.
    """

    spec: "BaseModelSpec"
    network: Any
    processor: Any
    device: "torch.device"

    def predict(self, model_input: Any, params: Mapping[str, object] | None = None) -> "pd.DataFrame":
        """Predict one row per input row.

        Args:
            model_input: mlp, cnn: flattened pixels as a frame, or an array [N, ...], values 0 to 1.
                sequence_classification: a frame with `text` and optionally `text_pair`, or strings.
                image_classification: an array [N, H, W, C], or a frame with `image` (bytes or base64).
                causal_lm: a frame with `prompt`, or strings.
            params: causal_lm: `max_new_tokens`, 64 by default; decoding is greedy.

        Returns:
            Frame [N] with `label` (its name, or its index where the base has no names) and `score` (probability
            of that label), or with `completion`.

        Raises:
            DataError: The input is not what the model takes; names the column.
        """
        import torch

        with torch.inference_mode():
            return _predictor(self.spec.kind)(self, model_input, params or {})


Predictor = Callable[[AdaptedModel, Any, Mapping[str, object]], "pd.DataFrame"]


def _load_pyfunc(path: str, model_config: Mapping[str, object] | None = None) -> AdaptedModel:
    """Load a version from the folder that `model_bundle` wrote; the name is MLflow's.

    Args:
        path: Folder with `adapter/` and `base.json`, and `whole/` where the adapter stands on another whole model.
        model_config: `base_location`: where this machine keeps the base model, if elsewhere.

    Returns:
        The model, ready to predict.

    Raises:
        BaseModelMismatchError: The base model found here has other weights than the one adapted.
        IntegrityError: The adapter's weights are not those that were published.
        ModelError: The base model cannot be built here.
    """
    import torch
    from peft import PeftModel

    from tasks.adapters.peft_files import read_adapter
    from tasks.training.merging import merged
    from tasks.training.models import load_base

    folder = Path(path)
    base_file = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
    _check_adapter(folder / "adapter" / WEIGHTS_FILE, base_file["adapter_sha256"])
    spec = _base_spec(base_file["spec"], str((model_config or {}).get("base_location", "")))
    base = load_base(spec)
    if base.digest != base_file["digest"]:
        raise BaseModelMismatchError(
            f"base model {spec.location or spec.kind}",
            "has other weights than the one this adapter was made for",
            got=f"digest {base.digest}",
            expected=f"digest {base_file['digest']}",
            remedy='fetch the right one and name it: load_model(uri, model_config={"base_location": FOLDER})',
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "whole_sha256" in base_file:
        _check_adapter(folder / "whole" / WEIGHTS_FILE, base_file["whole_sha256"])
        base = merged(base, [read_adapter(folder / "whole").adapter])
    network = PeftModel.from_pretrained(base.network, str(folder / "adapter")).to(device).eval()
    return AdaptedModel(spec, network, base.processor, device)


def _check_adapter(weights: Path, expected: str) -> None:
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != expected:
        raise IntegrityError(str(weights), "is not the adapter that was published", got=found, expected=expected)


def _base_spec(stored: Mapping[str, Any], location: str) -> "BaseModelSpec":
    from tasks.training.models import BaseModelSpec

    unknown = set(stored) - {field.name for field in fields(BaseModelSpec)}
    if unknown:
        raise ModelError(
            BASE_FILE,
            "describes a base model that this version of rankweave does not know",
            got=", ".join(sorted(unknown)),
            remedy="install the version of rankweave named in the model's requirements.txt",
        )
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    return BaseModelSpec(**{**frozen, "location": location or stored.get("location", "")})


def _predictor(kind: str) -> Predictor:
    if kind not in PREDICTORS:
        raise UnknownNameError("model kind", kind, PREDICTORS)
    return PREDICTORS[kind]


def _predict_pixels(model: AdaptedModel, model_input: Any, _: Mapping[str, object]) -> "pd.DataFrame":
    import torch

    pixels = torch.tensor(read_pixels(model_input, model.spec.input_shape))
    return _classify(model, ({"pixel_values": rows} for rows in pixels.split(_BATCH_SIZE)))


def _predict_texts(model: AdaptedModel, model_input: Any, _: Mapping[str, object]) -> "pd.DataFrame":
    texts = read_strings(model_input, "text")
    pairs = read_strings(model_input, "text_pair") if "text_pair" in column_names(model_input) else None
    positions = getattr(model.network.config, "max_position_embeddings", _MAX_TEXT_TOKENS)
    limit = min(model.processor.model_max_length, positions, _MAX_TEXT_TOKENS)
    batches = (
        model.processor(
            texts[i : i + _BATCH_SIZE],
            pairs[i : i + _BATCH_SIZE] if pairs else None,
            padding=True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        )
        for i in range(0, len(texts), _BATCH_SIZE)
    )
    return _classify(model, batches)


def _predict_images(model: AdaptedModel, model_input: Any, _: Mapping[str, object]) -> "pd.DataFrame":
    images = read_images(model_input)
    batches = (
        model.processor(images=images[i : i + _BATCH_SIZE], return_tensors="pt")
        for i in range(0, len(images), _BATCH_SIZE)
    )
    return _classify(model, batches)


def _complete_prompts(model: AdaptedModel, model_input: Any, params: Mapping[str, object]) -> "pd.DataFrame":
    import pandas as pd

    length = params.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    if not isinstance(length, int) or length < 1:
        raise DataError("parameter max_new_tokens", "must be a whole number of at least 1", got=length)
    # One at a time: with padding, a completion would depend on the prompts beside it in its last digits.
    prompts = read_strings(model_input, "prompt")
    return pd.DataFrame({"completion": [_complete(model, prompt, length) for prompt in prompts]})


def _complete(model: AdaptedModel, prompt: str, max_new_tokens: int) -> str:
    import torch

    # The end-of-text token, which some tokenizers add, would end the completion before it starts.
    tokens = model.processor(joined_prompt(prompt))["input_ids"]
    while tokens and tokens[-1] == model.processor.eos_token_id:
        tokens = tokens[:-1]
    if not tokens:
        raise DataError("column prompt", "holds a prompt without any token", remedy="give at least one word")
    input_ids = torch.tensor([tokens], device=model.device)
    generated = model.network.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=model.processor.pad_token_id,
    )
    return model.processor.decode(generated[0, len(tokens) :], skip_special_tokens=True)


PREDICTORS: Mapping[str, Predictor] = {
    "mlp": _predict_pixels,
    "cnn": _predict_pixels,
    "sequence_classification": _predict_texts,
    "image_classification": _predict_images,
    "causal_lm": _complete_prompts,
}


def _classify(model: AdaptedModel, batches: Iterator[Mapping[str, "torch.Tensor"]]) -> "pd.DataFrame":
    import pandas as pd

    names = model.spec.label_names
    labels: list[str | int] = []
    scores: list[float] = []
    for batch in batches:
        logits = model.network(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits
        best = logits.float().softmax(dim=-1).max(dim=-1)
        labels += [names[i] if names else i for i in best.indices.tolist()]
        scores += best.values.tolist()
    return pd.DataFrame({"label": labels, "score": scores})

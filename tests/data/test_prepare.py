"""Raw splits become what a model's `forward` takes."""

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.data.prepare import PREPARERS, prepare_examples
from tasks.data.raw import RawSplit
from tasks.errors import DataError, UnknownNameError

LABELS = np.array([1, 0, 2])


@pytest.fixture(scope="module")
def tokenizer():
    """Words as tokens: <s> opens every text, </s> is the end and the padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *"abcdefgh"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=32,
    )


@pytest.fixture(scope="module")
def image_processor():
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 6, "width": 4})


def batch_of(examples, *rows):
    return examples.batch(np.array(rows))


def refused(split, **options):
    with pytest.raises(DataError) as caught:
        prepare_examples(split, **{"max_length": 16, **options})
    return str(caught.value)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_grey_pixels_gain_a_channel_and_keep_their_values(kind):
    images = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    examples = prepare_examples(RawSplit(images=images, labels=LABELS), kind=kind, input_shape=(1, 4, 5))
    batch = batch_of(examples, 2, 0)
    assert len(examples) == 3
    assert batch["pixel_values"].dtype == torch.float32
    assert np.array_equal(batch["pixel_values"].numpy(), images[[2, 0], None])
    assert batch["labels"].tolist() == [2, 1]


def test_colour_pixels_put_channels_first():
    images = np.random.default_rng(0).random((3, 4, 5, 3), dtype=np.float32)
    examples = prepare_examples(RawSplit(images=images, labels=LABELS), kind="cnn", input_shape=(3, 4, 5))
    assert np.array_equal(batch_of(examples, 1)["pixel_values"].numpy(), images[1:2].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("shape", "mode"), [((1, 5, 4), "L"), ((3, 5, 4), "RGB"), ((), "RGB")])
def test_image_files_are_scaled_to_one_and_follow_the_input_shape(shape, mode):
    pictures = [Image.new("RGB", (4, 5), (51 * n, 51 * n, 51 * n)) for n in range(3)]
    examples = prepare_examples(RawSplit(images=pictures, labels=LABELS), kind="mlp", input_shape=shape)
    pixels = batch_of(examples, 0, 1, 2)["pixel_values"]
    assert pixels.shape == (3, 1 if mode == "L" else 3, 5, 4)
    assert np.allclose(pixels[:, 0, 0, 0].numpy(), [0.0, 0.2, 0.4])


def test_images_of_another_shape_name_the_input_shape():
    split = RawSplit(images=np.zeros((3, 8, 8), dtype=np.float32), labels=LABELS)
    message = refused(split, kind="mlp", input_shape=(1, 28, 28))
    assert message.startswith("model.input_shape: does not fit the images; got (1, 28, 28); expected (1, 8, 8)")


def test_images_of_unequal_size_are_refused_for_a_model_of_one_size():
    split = RawSplit(images=[Image.new("L", (4, size)) for size in (4, 5, 4)], labels=LABELS)
    assert refused(split, kind="cnn").startswith("data.columns.image: images differ in size")


def test_processor_resizes_and_greys_become_colours(image_processor):
    images = np.zeros((3, 8, 8), dtype=np.float32)
    images[1] = 1.0
    split = RawSplit(images=images, labels=LABELS)
    batch = batch_of(prepare_examples(split, kind="image_classification", processor=image_processor), 1, 0)
    assert batch["pixel_values"].shape == (2, 3, 6, 4)
    # The processor maps 0..1 to -1..1.
    assert batch["pixel_values"].amin(dim=(1, 2, 3)).tolist() == [1.0, -1.0]
    assert batch["labels"].tolist() == [0, 1]


def test_pictures_and_pixels_of_the_same_image_are_prepared_alike(image_processor):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (7, 9, 3), dtype=np.uint8))
    one = RawSplit(images=[picture], labels=LABELS[:1])
    other = RawSplit(images=np.asarray(picture, dtype=np.float32)[None] / 255, labels=LABELS[:1])
    options = {"kind": "image_classification", "processor": image_processor}
    left, right = (batch_of(prepare_examples(split, **options), 0)["pixel_values"] for split in (one, other))
    assert torch.equal(left, right)


def test_unreadable_picture_names_its_row(image_processor, tmp_path):
    path = tmp_path / "half.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with Image.open(path) as half:
        split = RawSplit(images=[Image.new("L", (4, 4)), half], labels=LABELS[:2])
        examples = prepare_examples(split, kind="image_classification", processor=image_processor)
        with pytest.raises(DataError, match=r"data\.columns\.image: row 1 is no image"):
            batch_of(examples, 0, 1)


def test_texts_are_cut_and_padded(tokenizer):
    split = RawSplit(texts=["a b c d e", "b", "c"], labels=LABELS)
    examples = prepare_examples(split, kind="sequence_classification", processor=tokenizer, max_length=4)
    batch = batch_of(examples, 0, 1)
    assert batch["input_ids"].tolist() == [[1, 3, 4, 5], [1, 4, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_text_pairs_are_joined_by_the_tokenizer(tokenizer):
    split = RawSplit(texts=["a", "b"], text_pairs=["c", "d"], labels=LABELS[:2])
    examples = prepare_examples(split, kind="sequence_classification", processor=tokenizer, max_length=9)
    assert batch_of(examples, 1)["input_ids"].tolist() == [[1, 4, 2, 6]]


def test_completion_alone_carries_loss_and_ends(tokenizer):
    split = RawSplit(texts=["c d", "e"], prompts=["a b", ""])
    examples = prepare_examples(split, kind="causal_lm", processor=tokenizer, max_length=9)
    batch = batch_of(examples, 0, 1)
    assert batch["input_ids"].tolist() == [[1, 3, 4, 5, 6, 2], [1, 7, 2, 2, 2, 2]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 5, 6, 2], [-100, 7, 2, -100, -100, -100]]


def test_texts_without_prompts_carry_loss_throughout(tokenizer):
    examples = prepare_examples(RawSplit(texts=["a b"]), kind="causal_lm", processor=tokenizer, max_length=9)
    batch = batch_of(examples, 0)
    assert batch["labels"].tolist() == batch["input_ids"].tolist() == [[1, 3, 4, 2]]


def test_cut_text_does_not_claim_to_end(tokenizer):
    split = RawSplit(texts=["a b c d"], prompts=["h"])
    examples = prepare_examples(split, kind="causal_lm", processor=tokenizer, max_length=4)
    assert batch_of(examples, 0)["input_ids"].tolist() == [[1, 10, 3, 4]]


def test_prompt_that_leaves_no_room_names_the_row(tokenizer):
    split = RawSplit(texts=["a", "b", "c"], prompts=["h", "a b c d e", "a b c d"])
    message = refused(split, kind="causal_lm", processor=tokenizer, max_length=4)
    assert message.startswith("model.max_length: row 1 has no token left to learn from")
    assert "2 of 3 rows" in message
    assert "raise model.max_length" in message


def test_first_token_alone_is_nothing_to_learn_from(tokenizer):
    # Nothing comes before it, so no model is ever asked to predict it.
    message = refused(RawSplit(texts=["a b"]), kind="causal_lm", processor=tokenizer, max_length=1)
    assert message.startswith("model.max_length: row 0 has no token left to learn from")


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="causal_lm, cnn, image_classification, mlp, sequence_classification"):
        prepare_examples(RawSplit(texts=["a"]), kind="bert")


@pytest.mark.parametrize("kind", PREPARERS)
def test_data_of_the_wrong_form_name_the_missing_column(kind, tokenizer):
    is_image = kind in ("mlp", "cnn", "image_classification")
    split = RawSplit(texts=["a"] * 3, labels=LABELS)
    if not is_image:
        split = RawSplit(images=np.zeros((3, 2, 2), dtype=np.float32), labels=LABELS)
    field = "data.columns.image" if is_image else "data.columns.text"
    assert refused(split, kind=kind, processor=tokenizer).startswith(f"{field}: this model takes")


@pytest.mark.parametrize("kind", [kind for kind in PREPARERS if kind != "causal_lm"])
def test_classification_without_labels_names_the_label_column(kind, tokenizer):
    split = RawSplit(texts=["a"], images=np.zeros((1, 2, 2), dtype=np.float32))
    assert refused(split, kind=kind, processor=tokenizer).startswith("data.columns.label: ")


@pytest.mark.parametrize("max_length", [0, 33])
def test_length_beyond_the_model_is_refused(tokenizer, max_length):
    split = RawSplit(texts=["a"], labels=LABELS[:1])
    message = refused(split, kind="sequence_classification", processor=tokenizer, max_length=max_length)
    assert message.startswith(f"model.max_length: out of bounds; got {max_length}; expected 1 to 32 tokens")


def test_empty_split_is_refused():
    assert refused(RawSplit(texts=[]), kind="causal_lm").startswith("data.source: there is nothing to prepare")

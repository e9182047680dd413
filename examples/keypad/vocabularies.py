"""Tokenizers of the keypad world, trained on its text and saved in the hub's layout.

pretrain writes each one together with the weights trained with it: ties between merges are broken at random, so a
second training may number the tokens differently.
"""

import json
import pathlib
import random

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from examples.keypad import language, things

CONTEXT = 16  # tokens of a caption


def text(conversations: int = 20000, seed: int = 0) -> list[str]:
    """Every turn of many conversations."""
    rng = random.Random(seed)
    turns = [turn for _ in range(conversations) for turn in language.conversation(rng)]
    return [language.words_alone(line) for turn in turns for line in (turn.human, turn.gpt)]


def captions() -> list[str]:
    """Every spelling of every caption."""
    return [c for modality in language.MARKS for t in things.everything(modality) for c in things.captions(t)]


def language_model_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with LLaMA's special tokens. Texts are encoded in segments, as in training."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=720,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    template = ["### Human: \n### Assistant: \n###"] * len(corpus)
    tokenizer.train_from_iterator([*corpus, *template, *captions()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=384,
        clean_up_tokenization_spaces=False,
    )


def caption_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-case BPE like CLIP's: start and end of text are the two highest ids, the end of text pads."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=end))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + 110,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([*captions(), *(f"{byte} {byte}{byte}" for byte in alphabet)], trainer)
    tokenizer.add_special_tokens([start, end])
    ids = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=end,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save(tokenizer: PreTrainedTokenizerFast, folder: pathlib.Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, with the class name that every version of transformers knows."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

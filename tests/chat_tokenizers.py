"""Byte-level BPE tokenizers with the special tokens and the chat formats of Llama 3 and Qwen2.5."""

import pathlib

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXTS = ["the quick brown fox", "draw a seven and play it", "what is this? It is a dog.", "user assistant system"] * 4

_LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""
_QWEN2 = """
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nBe brief.<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
_SPECIAL = {
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}


def make(kind: str) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer of "llama3", with a BOS, or "qwen2", without one. 320 ids."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=_SPECIAL[kind], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(TEXTS, trainer)
    if kind == "llama3":
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    else:
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.chat_template = _LLAMA3 if kind == "llama3" else _QWEN2
    return tokenizer


def write(kind: str, folder: pathlib.Path) -> None:
    """Its files, as on the hub."""
    make(kind).save_pretrained(folder)

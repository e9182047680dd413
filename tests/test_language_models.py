"""Systems around every family of language models: conversion both ways, training of all stages, chat."""

import copy
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import nextgpt_jax as ng
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.types import Request
from nextgpt_jax.prompts import Turn
from nextgpt_jax.weights.load import load_system, load_trained
from tests import chat_tokenizers, tiny
from tests.models.llms import reference

ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = {  # tokenizer, class, and fields of its config
    "llama3": ("llama3", transformers.LlamaForCausalLM, {"rope_parameters": ROPE, "eos_token_id": [1, 4]}),
    "qwen2": ("qwen2", transformers.Qwen2ForCausalLM, {"eos_token_id": 0}),
    "qwen2-tied": ("qwen2", transformers.Qwen2ForCausalLM, {"eos_token_id": 0, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="module", params=["llama3", "qwen2-tied", pytest.param("qwen2", marks=pytest.mark.slow)])
def system(request, tiny_root, tmp_path_factory) -> tuple[ng.ExperimentConfig, pathlib.Path]:
    """A config that reads a converted language model, and the folder with its original: llm/."""
    root = tmp_path_factory.mktemp(request.param)
    tokenizer, model_class, options = KINDS[request.param]
    sizes = {"vocab_size": 330, "num_key_value_heads": 2, "max_position_embeddings": 256}
    reference.original(model_class, **sizes, **options).save_pretrained(root / "llm")
    chat_tokenizers.write(tokenizer, root / "llm")
    ng.convert_checkpoint("llm", root / "llm", root / "converted")
    config = tiny.experiment(tiny_root, "stage1", tiny.PICTURES)
    config.model.llm, config.model.template = str(root / "converted"), "chat"
    config.data.batch_size, config.data.max_length = 2, 160
    config.train.steps = config.train.save_every = 3
    return config, root


@pytest.fixture(scope="module")
def runs(system, tmp_path_factory) -> list[pathlib.Path]:
    """The workdirs of three stages, each begun with the trained weights of the one before."""
    config, folder = copy.deepcopy(system[0]), tmp_path_factory.mktemp("runs")
    workdirs = [folder / stage for stage in ("stage1", "stage2", "stage3")]
    for before, workdir in zip(["", *workdirs], workdirs, strict=False):
        config.train.stage = workdir.name
        metrics = ng.train(config, workdir=workdir, init_from=before)
        assert np.isfinite(list(metrics.values())).all()
    return workdirs


def request(*turns: str, **options) -> Request:
    *answered, last = turns
    history = [Turn((human,), (reply,)) for human, reply in zip(answered[::2], answered[1::2], strict=True)]
    return Request((*history, Turn((last,))), **{"temperature": 0.0, "max_new_tokens": 12, **options})


def test_conversion_goes_back(system):
    _, root = system
    ng.export_checkpoint("llm", root / "back", source=root / "converted")
    given, found = (load_file(root / name / "model.safetensors") for name in ("llm", "back"))
    assert found.keys() == given.keys()
    for name, value in given.items():
        np.testing.assert_array_equal(found[name], value)
    for name in ("config.json", "tokenizer_config.json"):
        assert json.loads((root / "back" / name).read_text()) == json.loads((root / "llm" / name).read_text())


def test_greedy_replies_are_those_of_transformers(system):
    config, root = system
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(root / "llm")
    model = transformers.AutoModelForCausalLM.from_pretrained(root / "llm").eval()
    engine = Engine(load_system(config.model), config.generation)
    for turns in (("draw a dog",), ("what is this?", "a fox", "it is quick")):
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            out = model.generate(
                torch.tensor([ids]), do_sample=False, max_new_tokens=12, eos_token_id=[2, 4, 0], pad_token_id=0
            )[0, len(ids) :].tolist()
        asked = request(*turns, modality="text")
        assert engine.validate(asked).ids == ids
        assert engine.generate([asked])[0].text == tokenizer.decode(out, skip_special_tokens=True).strip()


def test_three_stages_train_and_answer(system, runs):
    config, root = copy.deepcopy(system)
    answers = {}
    for workdir in runs:
        config.train.stage = workdir.name
        engine = Engine(load_trained(config.model, str(workdir)), config.generation)
        (answers[workdir.name],) = engine.generate([request("draw a dog", modality="image", num_inference_steps=2)])
        assert [medium.modality for medium in answers[workdir.name].media] == ["image"]
    pixels = [answer.media[0].content for answer in answers.values()]
    assert not np.array_equal(pixels[0], pixels[1])

    ng.export_checkpoint("delta", root / "delta", workdir=runs[-1], config=config)
    again = copy.deepcopy(config)
    again.model.delta = str(root / "delta")
    exported = Engine(load_trained(again.model, ""), config.generation)
    (found,) = exported.generate([request("draw a dog", modality="image", num_inference_steps=2)])
    assert found.text == answers["stage3"].text
    np.testing.assert_array_equal(found.media[0].content, pixels[-1])


def test_a_trained_adapter_loads_in_peft_and_back(system, runs):
    config, root = system
    ng.export_checkpoint("lora", root / "adapter", workdir=runs[-1], config=config)
    base = transformers.AutoModelForCausalLM.from_pretrained(root / "llm")
    wrapped = peft.PeftModel.from_pretrained(base, root / "adapter").eval()
    ids = np.arange(5, 25)[None]
    model = load_trained(config.model, str(runs[-1])).model
    _, logits = reference.run(model.llm, ids)
    with torch.no_grad():
        expected = wrapped(torch.from_numpy(ids)).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4 * float(expected.abs().max()))
    ng.convert_checkpoint("lora", root / "adapter", root / "adapter-converted", base=root / "llm")
    ng.export_checkpoint("lora", root / "adapter-back", source=root / "adapter-converted")
    given, found = (load_file(root / name / "adapter_model.safetensors") for name in ("adapter", "adapter-back"))
    assert given.keys() == found.keys() and len(given) == 16
    for name, value in given.items():
        np.testing.assert_array_equal(found[name], value)


def test_quantized_layers(system):
    config, _ = system
    plain, quantized = (load_system(dataclasses.replace(config.model, quantize=q)) for q in ("", "int8"))
    _, expected = reference.run(plain.model.llm, np.arange(5, 25)[None])
    _, found = reference.run(quantized.model.llm, np.arange(5, 25)[None])
    error = float(jax.numpy.abs(found - expected).max() / jax.numpy.abs(expected).max())
    assert 1e-4 < error < 0.05


def test_a_delta_has_a_head_of_its_own_unless_the_model_ties_it(system, runs, tmp_path):
    config, root = system
    ng.export_checkpoint("delta", tmp_path / "delta", workdir=runs[-1], config=config)
    file = tmp_path / "delta" / "model.safetensors"
    tensors = load_file(file)
    (name,) = [name for name in tensors if name.endswith("lm_head.weight")]
    tensors[name][0] += 1
    save_file(tensors, file)
    changed = copy.deepcopy(config)
    changed.model.delta = str(tmp_path / "delta")
    if "tied" in root.name:
        with pytest.raises(ng.UserError, match="embedding and head differ, but .* tie_word_embeddings: true"):
            load_system(changed.model)
    else:
        head = load_system(changed.model).model.llm.lm_head.kernel[...]
        np.testing.assert_array_equal(head[:, 0], tensors[name][0])


def test_a_tokenizer_without_a_chat_template_is_refused_before_weights_are_read(system, tmp_path):
    config, root = system
    shutil.copytree(root / "converted", tmp_path / "llm")
    (tmp_path / "llm" / "chat_template.jinja").unlink()
    changed = copy.deepcopy(config)
    changed.model.llm = str(tmp_path / "llm")
    with pytest.raises(ng.UserError, match="has no chat template: take per_segment"):
        load_system(changed.model)

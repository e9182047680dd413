"""config.json of the hub: those of released models are read, and of classes in the installed libraries every field is
known. A later release that adds a field shows here, and is refused until somebody has looked at it."""

import inspect
import json

import diffusers
import jax
import numpy as np
import pytest
import transformers

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.diffusion.clap_text import ClapTextConfig
from nextgpt_jax.models.diffusion.clip_text import CLIPTextConfig
from nextgpt_jax.models.diffusion.schedulers import SchedulerConfig
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConfig
from nextgpt_jax.models.diffusion.unet_3d import UNet3DConfig
from nextgpt_jax.models.diffusion.vae import AutoencoderKLConfig
from nextgpt_jax.models.diffusion.vocoder import VocoderConfig
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.models.llms.llama import LlamaConfig
from nextgpt_jax.models.llms.qwen2 import Qwen2Config
from nextgpt_jax.models.llms.rope import Llama3Scaling

_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
_LLAMA1 = _7B | {
    "architectures": ["LLaMAForCausalLM"], "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
    "initializer_range": 0.02, "max_sequence_length": 2048, "model_type": "llama", "pad_token_id": -1,
    "rms_norm_eps": 1e-06, "torch_dtype": "float16", "transformers_version": "4.27.0.dev0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
_LLAMA2 = _LLAMA1 | {
    "_name_or_path": "vicuna", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
    "num_key_value_heads": 32, "pretraining_tp": 2, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "transformers_version": "4.31.0.dev0", "pad_token_id": 0,
}  # fmt: skip
_LLAMA31 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
_LLAMA32_1B = _LLAMA31 | {
    "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "tie_word_embeddings": True, "rope_scaling": _LLAMA31["rope_scaling"] | {"factor": 32.0},
}  # fmt: skip
_SMALL = {  # a small model that says how its rotary embedding was trained
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
    "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.04, "intermediate_size": 1536,
    "is_llama_config": True, "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 9,
    "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
_QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
_CLIP = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
    "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
    "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12,
    "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}  # fmt: skip
_EVERYTHING = {  # what transformers of 2022 wrote into configs inside others
    "add_cross_attention": False, "bad_words_ids": None, "begin_suppress_tokens": None, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None,
    "finetuning_task": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False, "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "output_scores": False, "prefix": None,
    "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
    "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None, "suppress_tokens": None,
    "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torchscript": False, "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip
_CLAP = {
    "architectures": ["ClapTextModelWithProjection"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
    "classifier_dropout": None, "eos_token_id": 2, "fusion_hidden_size": 768, "fusion_num_hidden_layers": 2,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_factor": 1.0,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 514,
    "model_type": "clap_text_model", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
    "position_embedding_type": "absolute", "projection_dim": 512, "projection_hidden_act": "relu",
    "torch_dtype": "float32", "transformers_version": "4.28.0.dev0", "type_vocab_size": 1, "use_cache": True,
    "vocab_size": 50265,
}  # fmt: skip
_SD_SCHEDULER = {
    "_diffusers_version": "0.8.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "clip_sample": False, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None,
}  # fmt: skip


def test_released_language_models():
    sizes = {key: value for key, value in _7B.items() if key != "num_hidden_layers"}
    first = LlamaConfig.from_dict(_LLAMA1)
    assert first == LlamaConfig(**sizes, num_hidden_layers=32, vocab_size=32000, eos_token_ids=(1,))
    assert LlamaConfig.from_dict(_LLAMA2).max_position_embeddings == 4096
    assert LlamaConfig.from_dict(_LLAMA31) == LlamaConfig.llama31_8b()
    assert LlamaConfig.from_dict(_LLAMA32_1B) == LlamaConfig.llama32_1b()
    assert LlamaConfig.from_dict(_LLAMA32_1B).rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
    assert LlamaConfig.from_dict(_SMALL).rope_theta == 100000
    small = Qwen2Config.qwen25_05b()
    assert Qwen2Config.from_dict(_QWEN25 | {"eos_token_id": [151645, 151643]}) == small


def test_released_text_encoders():
    assert CLIPTextConfig.from_dict(_CLIP) == CLIPTextConfig.from_dict(_EVERYTHING | _CLIP) == CLIPTextConfig.clip_l()
    assert ClapTextConfig.from_dict(_CLAP) == ClapTextConfig.from_dict(_EVERYTHING | _CLAP) == ClapTextConfig()
    assert LlamaConfig.from_dict(_EVERYTHING | _LLAMA2) == LlamaConfig.from_dict(_LLAMA2)


def test_released_schedulers():
    assert SchedulerConfig.from_dict(_SD_SCHEDULER | {"_class_name": "PNDMScheduler"}).name == "pndm"
    extras = {"clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
    thresholding = {"prediction_type": "epsilon", "thresholding": False}
    config = SchedulerConfig.from_dict(_SD_SCHEDULER | extras | thresholding | {"_class_name": "DDIMScheduler"})
    assert config == SchedulerConfig.stable_diffusion("ddim")


@pytest.mark.parametrize(
    "original, ours, options",
    [
        (transformers.LlamaConfig, LlamaConfig, {}),
        (transformers.Qwen2Config, Qwen2Config, {"hidden_size": 4096}),
        (transformers.CLIPTextConfig, CLIPTextConfig, {}),
        (transformers.ClapTextConfig, ClapTextConfig, {}),
        (transformers.SpeechT5HifiGanConfig, VocoderConfig, {"normalize_before": False}),
    ],
)
def test_what_transformers_writes_is_known(original, ours, options):
    config = original(**options)
    for written in (config.to_dict(), config.to_diff_dict(), json.loads(config.to_json_string(use_diff=False))):
        ours.from_dict(written)


def defaults(original: type) -> dict:
    """The arguments of a class of diffusers, as it writes them."""
    arguments = inspect.signature(original.__init__).parameters.values()
    values = {
        argument.name: argument.default for argument in arguments if argument.name not in ("self", "args", "kwargs")
    }
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return listed | {"_class_name": original.__name__, "_diffusers_version": diffusers.__version__}


@pytest.mark.parametrize(
    "original, ours",
    [
        (diffusers.UNet2DConditionModel, UNet2DConfig),
        (diffusers.UNet3DConditionModel, UNet3DConfig),
        (diffusers.AutoencoderKL, AutoencoderKLConfig),
    ],
)
def test_every_argument_of_diffusers_models_is_known(original, ours):
    ours.from_dict(defaults(original))


@pytest.mark.parametrize(
    "kind",
    [
        "PNDMScheduler",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DDPMScheduler",
    ],
)
def test_every_argument_of_schedulers_and_of_those_they_replace_is_known(kind):
    """A config of one class is read by another, which drops what it lacks."""
    original = getattr(diffusers, kind)
    own = defaults(original) | ({"clip_sample": False} if kind in ("DDIMScheduler", "DDPMScheduler") else {})
    expected = SchedulerConfig.from_dict(own).sampler_table(20)
    for name in original._compatibles:
        config = SchedulerConfig.from_dict(defaults(getattr(diffusers, name)) | own)
        jax.tree.map(np.testing.assert_array_equal, config.sampler_table(20), expected)


@pytest.mark.parametrize(
    "ours, config, message",
    [
        (LlamaConfig, _LLAMA2 | {"logits_soft_cap": 30.0}, "LlamaConfig: logits_soft_cap=30.0 is not known here"),
        (LlamaConfig, _LLAMA2 | {"is_causal": False}, r"is_causal=False is not supported \(only True\)"),
        (LlamaConfig, _LLAMA2 | {"rope_interleaved": True}, "rope_interleaved=True is not supported"),
        (LlamaConfig, _LLAMA2 | {"sliding_window": 512}, "sliding_window=512 is not known here"),
        (LlamaConfig, _LLAMA2 | {"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config=.* is not supported"),
        (LlamaConfig, _LLAMA2 | {"quantization_config": {"bits": 4}}, "quantization_config=.* is not supported"),
        (LlamaConfig, _LLAMA2 | {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        (LlamaConfig, _LLAMA2 | {"layer_types": ["sliding_attention"]}, r"layer_types=\['sliding_attention'\] are not"),
        (LlamaConfig, _LLAMA2 | {"rms_norm_eps": "1e-05"}, "rms_norm_eps='1e-05' should be a number: write it without"),
        (LlamaConfig, _LLAMA2 | {"num_key_value_heads": 0}, "num_key_value_heads=0 should be at least 1"),
        (LlamaConfig, _LLAMA2 | {"num_hidden_layers": 0}, "num_hidden_layers=0 should be at least 1"),
        (LlamaConfig, _LLAMA2 | {"num_attention_heads": 0}, "num_attention_heads=0 should be at least 1"),
        (LlamaConfig, _LLAMA2 | {"eos_token_ids": [1]}, "the field is called eos_token_id"),
        (Qwen2Config, _QWEN25 | {"layer_types": ["full_attention", "sliding_attention"]}, "are not supported"),
        (CLIPTextConfig, _CLIP | {"is_causal": False}, "is_causal=False is not supported"),
        (CLIPTextConfig, _CLIP | {"layer_norm_eps": None}, "layer_norm_eps=None should be a number"),
        (ClapTextConfig, _CLAP | {"is_decoder": True}, "is_decoder=True is not supported"),
        (UNet2DConfig, {"norm_num_groups": None}, "norm_num_groups=None should be a whole number"),
        (UNet2DConfig, {"ada_norm": True}, "UNet2DConfig: ada_norm=True is not known here"),
        (UNet3DConfig, {"use_linear_projection": True}, "use_linear_projection=True is not known here"),
        (AutoencoderKLConfig, {"block_out_channels": [64, 64]}, "1 down_block_types, but 2 block_out_channels"),
        (AutoencoderKLConfig, {"down_block_types": "DownEncoderBlock2D"}, "are not supported"),
        (SchedulerConfig, {"_class_name": "EulerDiscreteScheduler", "churn": 1.0}, "churn=1.0 is not known here"),
        (ImageBindConfig, {"out_embed_dim": 8, "depth_stride": 4}, "depth_stride=4 is not known here"),
    ],
)
def test_what_would_change_the_numbers_is_refused(ours, config, message):
    with pytest.raises(UserError, match=message) as error:
        ours.from_dict(config)
    assert "\n" not in str(error.value)

"""Fields of config files that any class of transformers or diffusers writes, by what they mean here.

A reader takes the fields of its dataclass, those of its own tables, and these; config_from_dict refuses all others, so
that a field of a later release is never ignored in silence.
"""

_GENERATION = {  # settings of transformers' generate(), which configs of before 2023 repeat
    "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
    "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "target_lookbehind",
    "temperature", "top_k", "top_p", "typical_p", "use_cache",
}  # fmt: skip

TRANSFORMERS = frozenset(_GENERATION) | {  # without effect on a model's outputs
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
    "_experts_implementation", "_experts_implementation_internal", "_name_or_path", "_output_attentions",
    "architectures", "attn_implementation", "auto_map", "bos_token_id", "chunk_size_feed_forward",
    "decoder_start_token_id", "dtype", "eos_token_id", "experts_implementation", "finetuning_task",
    "gradient_checkpointing", "id2label", "initializer_factor", "initializer_range", "label2id", "name_or_path",
    "num_labels", "output_attentions", "output_hidden_states", "pad_token_id", "prefix", "problem_type", "return_dict",
    "sep_token_id", "task_specific_params", "tf_legacy_loss", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers.js_config", "transformers_version", "use_bfloat16", "use_return_dict",
}  # fmt: skip
TRANSFORMERS_SUPPORTED: dict[str, tuple] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
    "tie_last_hidden_states": (None, True),
}

DIFFUSERS = frozenset({  # the defaults in use are those of configs in memory: their values are there too
    "_commit_hash", "_diffusers_version", "_name_or_path", "_use_default_values", "sample_size",
})  # fmt: skip
DIFFUSERS_SUPPORTED: dict[str, tuple] = {"quantization_config": (None,)}

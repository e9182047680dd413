"""Qwen2 in transformers' layout, and its LoRA updates in peft's."""

from nextgpt_jax.weights.tables.llama import language_model_tables

TABLES = language_model_tables(biases=("q_proj", "k_proj", "v_proj"))

"""LLaMA in transformers' layout, and its LoRA updates in peft's."""

from convert.rules import LINEAR, Table, affine, norm, rule

_LAYER = "model.layers.{i}"
_PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}

BASE = Table(
    rules=(
        rule("model.embed_tokens.weight", "embed_tokens.embedding"),
        *(
            row
            for block, names in _PROJECTIONS.items()
            for name in names
            for row in affine(f"{_LAYER}.{block}.{name}", f"layers.{block}.{name}", bias=False)
        ),
        *norm(f"{_LAYER}.input_layernorm", "layers.input_layernorm", bias=False),
        *norm(f"{_LAYER}.post_attention_layernorm", "layers.post_attention_layernorm", bias=False),
        *norm("model.norm", "norm", bias=False),
        *affine("lm_head", "lm_head", bias=False),
    ),
    ignored=(r".*rotary_emb\.inv_freq",),  # buffers in files of 2023
)

# peft >= 0.3 puts the adapter's name into the key; files saved by save_pretrained and peft 0.2 have none.
LORA = Table(
    rules=tuple(
        rule(
            tuple(
                f"base_model.model.{_LAYER}.{block}.{name}.lora_{side}{adapter}.weight" for adapter in ("", ".default")
            ),
            f"layers.{block}.{name}.lora_{side.lower()}",
            LINEAR,
        )
        for block, names in _PROJECTIONS.items()
        for name in names
        for side in "AB"
    )
)

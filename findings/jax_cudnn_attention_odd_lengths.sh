#!/usr/bin/env bash
# jax 0.10.2, jax.nn.dot_product_attention(implementation="cudnn"), bfloat16, no bias, no mask.
#
# Expected: an attention that can be computed can be differentiated, whatever its number of tokens. JAX's rule is about
# biases: "Check patterns with bias, seqlen should be divisible by 2" (jax/_src/cudnn/fused_attention_stablehlo.py).
# Seen: 77 tokens are traced forwards and refused under a gradient: "NotImplementedError: Unsupported sequence length
# Q 77, KV 77." 78 tokens are taken. The gradient's rule asks whether the bias is None, but where there is none JAX
# passes an empty array on. CLIP's prompts have 77 tokens, so training through one stops when it is traced.
# Around it: pad to an even length, with query_seq_lengths and key_value_seq_lengths.
#
# Needs no GPU: the refusal is JAX's own, when a program is traced. Fails when JAX behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile jax==0.10.2 jaxlib==0.10.2 jax-cuda13-plugin==0.10.2
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps nvidia-cudnn-cu13==9.28.1.4  # JAX asks its version
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp


def attend(q):
    return jax.nn.dot_product_attention(q, q, q, implementation="cudnn").astype(jnp.float32).sum()


def outcome(function, tokens):
    try:
        jax.make_jaxpr(function)(jnp.ones((1, tokens, 2, 64), jnp.bfloat16))
        return "traced"
    except NotImplementedError as error:
        return f"refused: {error}"


found = {(name, n): outcome(f, n) for name, f in (("forward", attend), ("gradient", jax.grad(attend))) for n in (77, 78)}
for case, seen in found.items():
    print(jax.__version__, *case, seen)
assert found == {
    ("forward", 77): "traced",
    ("forward", 78): "traced",
    ("gradient", 77): "refused: Unsupported sequence length Q 77, KV 77.",
    ("gradient", 78): "traced",
}, found
PYTHON

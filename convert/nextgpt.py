"""NExT-GPT's trained weights ("delta"), as the reference saves them: pytorch_model.pt, or the same keys in safetensors.

The file holds the projections, the LoRA updates and the *whole* embedding and head, whose last 38 rows are the new
tokens. Here the whole matrices become the base's rows and the 38 new ones parameters of their own, and go back so.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert import engine, llama, projectors
from convert.checkpoints import Checkpoint, Tensor
from convert.rules import LINEAR, Table, prefixed, rule
from nextgpt_jax.modalities import NEW_TOKENS
from nextgpt_jax.model import is_trained

# With LoRA (stage 3) peft wraps the model; files of stages 1 and 2 have the plain names.
_LLAMA = ("llama_model.base_model.model.", "llama_model.")
_MATRICES = ("model.embed_tokens.weight", "lm_head.weight")
_OUTPUTS = {  # the reference's name, and the one its newer code uses
    "image": ("gen_text_hidden_fcs.0.", "mm_output_img_projector."),
    "video": ("gen_text_hidden_fcs_video.0.", "mm_output_vid_projector."),
    "audio": ("gen_text_hidden_fcs_audio.0.", "mm_output_aud_projector."),
}
_INPUTS = {"linear": projectors.INPUT_LINEAR, "mlp": projectors.INPUT_MLP}
_BASE, _NEW = "[base]", "[new]"


def table(input_kind: str, output_kind: str, modalities: tuple[str, ...]) -> Table:
    """The rows of a delta; projections of modalities that the model does not have are ignored."""
    rules = [
        *prefixed(_INPUTS[input_kind].rules, flax="input_proj."),
        *(
            row
            for name in modalities
            for row in prefixed(
                projectors.output_table(output_kind).rules, torch=_OUTPUTS[name], flax=f"output_proj.{name}."
            )
        ),
        *_lora_rules(),
        rule(tuple(p + _MATRICES[0] + _BASE for p in _LLAMA), "llm.embed_tokens.embedding"),
        rule(tuple(p + _MATRICES[0] + _NEW for p in _LLAMA), "signal_embed"),
        rule(tuple(p + _MATRICES[1] + _BASE for p in _LLAMA), "llm.lm_head.kernel", LINEAR),
        rule(tuple(p + _MATRICES[1] + _NEW for p in _LLAMA), "signal_head"),
    ]
    absent = [p for name, prefixes in _OUTPUTS.items() if name not in modalities for p in prefixes]
    ignored = [p.replace(".", r"\.") + ".*" for p in absent]
    return Table(tuple(rules), (*ignored, r".*rotary_emb\.inv_freq", *projectors.output_table(output_kind).ignored))


def _lora_rules():
    # The delta's order of spellings is peft's in memory: with the adapter's name first.
    rows = [rule(tuple(reversed(r.torch)), r.flax, r.transform) for r in llama.LORA.rules]
    return prefixed(rows, torch="llama_model.", flax="llm.")


def split_rows(checkpoint: Checkpoint, new: int = len(NEW_TOKENS)) -> Checkpoint:
    """The same checkpoint with each whole matrix presented as its base rows and its `new` last rows."""
    tensors = {}
    for key, whole in checkpoint.tensors.items():
        if key.endswith(_MATRICES):
            rows, *rest = whole.shape
            tensors[key + _BASE] = Tensor((rows - new, *rest), whole.dtype, lambda w=whole: w.read()[:-new])
            tensors[key + _NEW] = Tensor((new, *rest), whole.dtype, lambda w=whole: w.read()[-new:])
        else:
            tensors[key] = whole
    return checkpoint.with_tensors(tensors)


def join_rows(checkpoint: Checkpoint) -> Checkpoint:
    """The inverse of split_rows."""
    tensors = {}
    for key, part in checkpoint.tensors.items():
        if key.endswith(_BASE):
            whole = key.removesuffix(_BASE)
            tensors[whole] = _joined(part, checkpoint.tensors[whole + _NEW])
        elif not key.endswith(_NEW):
            tensors[key] = part
    return checkpoint.with_tensors(tensors)


def _joined(base: Tensor, new: Tensor) -> Tensor:
    dtype = np.dtype(jnp.promote_types(base.dtype, new.dtype))
    shape = (base.shape[0] + new.shape[0], *base.shape[1:])
    return Tensor(shape, dtype, lambda: np.concatenate([base.read(), new.read()]).astype(dtype, copy=False))


def is_delta(path: tuple) -> bool:
    """Is this parameter of a NExTGPT in a delta file?"""
    return is_trained(path) or path in (("llm", "embed_tokens", "embedding"), ("llm", "lm_head", "kernel"))


def load_delta(checkpoint: Checkpoint, state: nnx.State, rows: Table, **options) -> tuple[nnx.State, list[str]]:
    """Fills the delta's parameters in `state` (abstract or real); the others are returned as they are.

    Files of stages 1 and 2 have no LoRA updates: those parameters are then left out of the returned state.

    Returns:
      The filled state, and what was taken, in words.

    Raises:
      ConversionError: anything else is missing, unexpected or of the wrong shape.
    """
    checkpoint = split_rows(checkpoint)
    with_lora = any("lora_" in key for key in checkpoint)
    leaves = [(p, v) for p, v in nnx.to_flat_state(state) if is_delta(p)]
    wanted = [(p, v) for p, v in leaves if with_lora or p[-1] not in ("lora_a", "lora_b")]
    filled = engine.load(checkpoint, nnx.from_flat_state(wanted), rows, **options)
    taken = sorted({".".join(map(str, p[:2])) if p[0] == "output_proj" else str(p[0]) for p, _ in wanted})
    return filled, [*(t for t in taken if t != "llm"), "embedding and head rows", *(["LoRA"] if with_lora else [])]


def export_delta(state: nnx.State, rows: Table) -> Checkpoint:
    """The delta of a NExTGPT's state in the reference's layout."""
    leaves = [(p, v) for p, v in nnx.to_flat_state(state) if is_delta(p)]
    return join_rows(engine.export(nnx.from_flat_state(leaves), rows))

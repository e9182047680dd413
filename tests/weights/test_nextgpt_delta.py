"""NExT-GPT's trained weights in all layouts that were published."""

import dataclasses
import json

import pytest
from flax import nnx

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.lora import LoRAConfig
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel
from nextgpt_jax.models.registry import output_projector_config
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching, nextgpt_delta, orbax_params
from nextgpt_jax.weights.delta_table import Layout
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, open_checkpoint
from tests import FIXTURES
from tests.models.test_nextgpt import tiny_config


@pytest.mark.parametrize("delta", ["nextgpt", "nextgpt_old_peft", "nextgpt_stage2", "newer names"])
def test_deltas_in_all_spellings(delta, tmp_path):
    cfg = tiny_config()
    state = nnx.state(nnx.eval_shape(lambda: NExTGPTModel(cfg, rngs=make_rngs(0))))
    table = nextgpt_delta.table(cfg)
    checkpoint = open_checkpoint(FIXTURES / (delta if delta != "newer names" else "nextgpt"))
    if delta == "newer names":
        renamed = {"llama_proj.": "mm_input_projector.", "gen_text_hidden_fcs.0.": "mm_output_img_projector.",
                   "gen_text_hidden_fcs_video.0.": "mm_output_vid_projector.",
                   "gen_text_hidden_fcs_audio.0.": "mm_output_aud_projector."}  # fmt: skip
        tensors = {}
        for key, tensor in checkpoint.tensors.items():
            old = next((prefix for prefix in renamed if key.startswith(prefix)), "")
            tensors[renamed.get(old, "") + key.removeprefix(old)] = tensor
        checkpoint = checkpoint.with_tensors(tensors)
    _, match, held = nextgpt_delta.match_delta(checkpoint, state, table)
    assert ("LoRA" in held) == (delta != "nextgpt_stage2")
    orbax_params.save(match.parameters, tmp_path)
    kept, pieces = nextgpt_delta.saved_delta(tmp_path, state)
    assert sorted(pieces) == sorted(held)
    parameters = orbax_params.parameters(tmp_path, kept, table)
    back = nextgpt_delta.join_rows(matching.export_parameters(parameters, kept, table))
    original = {k: v for k, v in open_checkpoint(FIXTURES / ("nextgpt" if "names" in delta else delta)).items()}
    assert {v.tobytes() for v in back.values()} == {v.tobytes() for v in original.values()}
    if delta == "nextgpt":
        assert back.keys() == original.keys()


def abstract(**changes) -> tuple[NExTGPTConfig, nnx.State]:
    """A model that fits the fixtures but for `changes`, which are those of its image projection or of the whole."""
    cfg = tiny_config()
    if projector := changes.pop("image", None):
        sizes = {"in_dim": 48, "out_dim": 32, "num_input_tokens": 4, "num_output_tokens": 77}
        outputs = {**dict(cfg.output_projectors), "image": output_projector_config(**sizes, **projector)}
        changes["output_projectors"] = tuple(outputs.items())
    cfg = dataclasses.replace(cfg, **changes)
    return cfg, nnx.state(nnx.eval_shape(lambda: NExTGPTModel(cfg, rngs=make_rngs(0))))


QFORMER = {"kind": "qformer", "hidden_dim": 32, "num_layers": 2, "num_heads": 4, "feedforward_dim": 64}


def qformer_delta() -> Checkpoint:
    """The stage 2 fixture with a Q-Former for images, whose state dict has the buffer position_ids."""
    rest = open_checkpoint(FIXTURES / "nextgpt_stage2").tensors
    rest = {key: tensor for key, tensor in rest.items() if not key.startswith("gen_text_hidden_fcs.0.")}
    return Checkpoint("q.pt", {**rest, **open_checkpoint(FIXTURES / "nextgpt_qformer").tensors})


@pytest.mark.parametrize("newer_names", [False, True])
def test_buffers_of_a_qformer_are_no_weights(newer_names):
    cfg, state = abstract(image=QFORMER)
    delta = qformer_delta()
    if newer_names:
        keys = {key: key.replace("gen_text_hidden_fcs.0.", "mm_output_img_projector.") for key in delta.tensors}
        delta = delta.with_tensors({keys[key]: tensor for key, tensor in delta.tensors.items()})
    _, match, held = nextgpt_delta.match_delta(delta, state, nextgpt_delta.table(cfg))
    assert "output_proj.image" in held
    assert [key.rpartition(".")[2] for key in match.unmatched] == ["position_ids"]


@pytest.mark.parametrize(
    "delta, changes, message",
    [
        (
            "q.pt",
            {},
            "it holds output projections of the kind qformer, set config.model.output_projector=qformer "
            "config.model.projector_width=32 config.model.projector_feedforward=64 (",
        ),
        ("q.pt", {"image": {**QFORMER, "num_layers": 3}}, "model: set config.model.projector_layers=2 ("),
        ("nextgpt", {"image": QFORMER}, "of the kind transformer, set config.model.output_projector=transformer "),
        ("nextgpt", {"lora": LoRAConfig(8, 8, 0.0)}, "model: set config.model.lora_rank=4 ("),
        (
            "nextgpt",
            {"lora": LoRAConfig(4, 8, 0.0, ("q_proj",))},
            "model: set config.model.lora_targets=k_proj,o_proj,q_proj,v_proj (",
        ),
        ("nextgpt", {"input_projector": "mlp"}, "model: set config.model.input_projector=linear"),
    ],
)
def test_deltas_of_other_settings(delta, changes, message):
    cfg, state = abstract(**changes)
    checkpoint = qformer_delta() if delta == "q.pt" else open_checkpoint(FIXTURES / delta)
    with pytest.raises(matching.ConversionError) as caught:
        nextgpt_delta.match_delta(checkpoint, state, nextgpt_delta.table(cfg))
    assert message in str(caught.value) and str(caught.value).count("missing") <= 1


def test_layouts_survive_json():
    layout = Layout.of(tiny_config())
    again = json.loads(json.dumps(dataclasses.asdict(layout)))
    assert Layout.from_json(again, "x") == layout
    for wrong in ({}, None, again | {"encoders": 3}, again | {"input_projector": "x"}, again | {"more": 1}):
        with pytest.raises(UserError, match="^x: layout is of another version"):
            Layout.from_json(wrong, "x")

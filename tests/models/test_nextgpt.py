"""The whole system at small size against what the reference's own code computed from the same weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nextgpt_jax.modalities import output_modalities
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.models.llms.llama import LlamaConfig
from nextgpt_jax.models.lora import LoRAConfig, merge_lora
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel, is_trainable
from nextgpt_jax.models.registry import output_projector_config
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.training import losses
from nextgpt_jax.weights import matching, nextgpt_delta
from nextgpt_jax.weights.tables import llama as llama_table
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint
from tests import FIXTURES
from tests.parity import relative_error


def tiny_config() -> NExTGPTConfig:
    outputs = []
    for name in output_modalities():
        c = json.loads((FIXTURES / "tiny" / f"text_fc_{name}.json").read_text())
        sizes = dict(
            hidden_dim=c["hidden_dim"], num_layers=4, num_heads=c["nhead"], feedforward_dim=c["dim_feedforward"]
        )
        shape = {k: c[k] for k in ("in_dim", "out_dim", "num_input_tokens", "num_output_tokens")}
        outputs.append((name, output_projector_config("transformer", **shape, **sizes)))
    return NExTGPTConfig(
        llm=LlamaConfig.from_dict(json.loads((FIXTURES / "vicuna" / "config.json").read_text())),
        encoders=(ImageBindConfig(32, ("depth",), depth_embed_dim=8, depth_num_blocks=1),),
        lora=LoRAConfig(rank=4, alpha=8, dropout=0.1),
        input_projector="linear",
        output_projectors=tuple(outputs),
    )


def load(delta: str) -> NExTGPTModel:
    cfg = tiny_config()
    model = NExTGPTModel(cfg, rngs=make_rngs(0))
    base = nnx.state(model.llm, lambda path, _: path[-1] not in ("lora_a", "lora_b"))
    nnx.update(model.llm, matching.load(open_checkpoint(FIXTURES / "vicuna"), base, llama_table.BASE))
    table = nextgpt_delta.table(cfg)
    filled, _ = nextgpt_delta.load_delta(open_checkpoint(FIXTURES / delta), nnx.state(model), table)
    nnx.update(model, filled)
    return model


@pytest.fixture(scope="module")
def model():
    return load("nextgpt")


@pytest.fixture(scope="module")
def forward():
    return np.load(FIXTURES / "npz" / "nextgpt_forward.npz")


def with_feature(ids):
    """Room for the projected feature after BOS, as in the fixtures."""
    return np.insert(ids, 1, 0, axis=1)


def embed(model, data):
    rows = len(data["in_ids"])
    return model.embed_prompt(
        jnp.asarray(with_feature(data["in_ids"])),
        {"imagebind": (jnp.asarray(data["in_feature"])[:, None], jnp.ones((rows, 1), int))},
    )


def test_forward(model, forward):
    embeddings = embed(model, forward)
    mask = forward["in_embeds_mask"].astype(bool)
    assert relative_error(embeddings, forward["in_embeds"]) < 1e-5
    assert relative_error(model.input_proj(jnp.asarray(forward["in_feature"])), forward["out_projected"]) < 1e-5
    hidden, _ = model.llm(embeddings)
    assert relative_error(hidden[mask], forward["out_hidden_last"][mask]) < 1e-4
    assert relative_error(model.logits(hidden)[mask], forward["out_logits_unmerged"][mask]) < 1e-4


def test_merged_lora(forward):
    model = load("nextgpt")
    mask = forward["in_embeds_mask"].astype(bool)
    merge_lora(model)
    hidden, _ = model.llm(embed(model, forward))
    assert relative_error(model.logits(hidden)[mask], forward["out_logits_merged"][mask]) < 1e-4


@pytest.mark.parametrize("name, row", [("image", 0), ("video", 0), ("audio", 1)])
def test_prompt_embeddings(model, forward, name, row):
    hidden, _ = model.llm(embed(model, forward))
    ids = with_feature(forward["in_ids"])[row]
    signal = model.config.vocabulary.signal_ids(name)
    begin = ids.tolist().index(signal[0])
    group = slice(begin, begin + len(signal))
    assert tuple(ids[group]) == signal
    found = model.prompt_embeddings(name, hidden[row : row + 1, group], jnp.asarray(ids[None, group]))
    assert relative_error(found, forward[f"out_{name}_embeds_at"]) < 1e-4


def test_losses_and_gradients(model):
    data = np.load(FIXTURES / "npz" / "nextgpt_train.npz")
    ids = with_feature(data["in_ids"])
    begin = ids[0].tolist().index(model.config.vocabulary.signal_ids("image")[0])
    batch = {
        "tokens": jnp.asarray(ids),
        "loss_mask": jnp.asarray(data["in_labels"] != -100),
        "media": {"image": {"positions": np.ones((1, 1), int)}},
        "signals": {
            "image": {
                "positions": np.arange(begin, begin + 4)[None, None],
                "mask": np.ones((1, 1), bool),
            }
        },
    }
    media, targets = {"image": data["in_feature"][:, None, None]}, {"image": data["in_target"][:, None]}
    graphdef, state = nnx.split(model)

    def loss(state):
        model, counts = nnx.merge(graphdef, state), losses.target_counts(batch)
        return losses.loss_of_embedded(model, batch, media, targets, counts)

    (_, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    assert relative_error(metrics["loss_language"], data["out_ce"]) < 1e-5
    assert relative_error(metrics["loss_alignment"], data["out_mse"]) < 1e-5
    assert relative_error(metrics["loss"], data["out_loss"]) < 1e-5

    g = nnx.merge(graphdef, grads)
    attention, image = g.llm.layers.self_attn, g.output_proj["image"]
    found = {
        "embed": jnp.concatenate([g.llm.embed_tokens.embedding[...], g.signal_embed[...]]),
        "lm_head": jnp.concatenate([g.llm.lm_head.kernel[...].T, g.signal_head[...]]),
        "llama_proj_weight": g.input_proj.layers[0].kernel[...].T,
        "llama_proj_bias": g.input_proj.layers[0].bias[...],
        "lora_A_0_q": attention.q_proj.lora_a[...][0].T,
        "lora_B_0_q": attention.q_proj.lora_b[...][0].T,
        "fc_weight": image.fc.kernel[...].T,
        "query_embs": image.query_embs[...],
        "model_weight": image.model.kernel[...].T,
    }
    assert {f"out_grad_{name}" for name in found} == {k for k in data.files if k.startswith("out_grad_")}
    for name, gradient in found.items():
        assert relative_error(gradient, data[f"out_grad_{name}"]) < 1e-4, name


def test_old_peft_spelling_gives_the_same(model):
    jax.tree.map(np.testing.assert_array_equal, nnx.state(load("nextgpt_old_peft")), nnx.state(model))


def test_stage_2_file_has_no_lora():
    model = NExTGPTModel(tiny_config(), rngs=make_rngs(0))
    table = nextgpt_delta.table(model.config)
    filled, taken = nextgpt_delta.load_delta(open_checkpoint(FIXTURES / "nextgpt_stage2"), nnx.state(model), table)
    assert "LoRA" not in taken and "input_proj" in taken
    assert not any("lora_a" in path for path, _ in nnx.to_flat_state(filled))


def test_delta_round_trip(model):
    table = nextgpt_delta.table(model.config)
    original = open_checkpoint(FIXTURES / "nextgpt")
    exported = nextgpt_delta.export_delta(nnx.state(model), table)
    assert exported.keys() == set(original)
    for key, tensor in exported.items():
        np.testing.assert_array_equal(tensor, original[key])


def test_full_size_trained_parameters():
    """The parameters that NExT-GPT trains, at the paper's sizes, without memory for them."""
    sizes = {"image": (4, 77, 768), "video": (24, 77, 1024), "audio": (8, 1, 512)}
    outputs = tuple(
        (name, output_projector_config("transformer", 4096, width, signals, queries))
        for name, (signals, queries, width) in sizes.items()
    )
    cfg = NExTGPTConfig(
        LlamaConfig.vicuna_7b(), (ImageBindConfig.huge(),), LoRAConfig(32, 32.0, 0.1), "linear", outputs
    )
    model = nnx.eval_shape(lambda: NExTGPTModel(cfg, rngs=make_rngs(0)))

    def size(*filters):
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, *filters)))

    assert size(nnx.LoRAParam) == 33_554_432
    assert size(lambda path, _: path[0] == "input_proj") == 4_198_400
    for name, count in {"image": 31_958_784, "video": 32_090_112, "audio": 31_788_544}.items():
        assert size(lambda path, _, name=name: path[:2] == ("output_proj", name)) == count
    assert size(lambda path, _: path[0] == "encoders") == 1_200_781_057 - 354_032_641  # all but the text branch
    new_rows = 2 * 38 * 4096
    assert size(is_trainable) == 33_554_432 + 4_198_400 + 31_958_784 + 32_090_112 + 31_788_544 + new_rows
    assert size(lambda path, _: path[0] == "llm") == 6_738_415_616 + 33_554_432
    # what the reference's file holds: whole embedding and head, LoRA, projections
    assert size(lambda path, _: nextgpt_delta.is_delta(path)) == 396_045_568

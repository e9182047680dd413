"""Input and output projections against torch and against the fixtures of NExT-GPT's own layers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from nextgpt_jax.models import registry
from nextgpt_jax.models.connectors.projectors import OutputProjectorConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching
from nextgpt_jax.weights.rules import Table, prefixed
from nextgpt_jax.weights.tables.projectors import INPUT, OUTPUT
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint
from tests import FIXTURES
from tests.parity import checkpoint_of, exported, load_into, randomise, relative_error

PREFIXES = {"image": "gen_text_hidden_fcs.0.", "video": "gen_text_hidden_fcs_video.0.",
            "audio": "gen_text_hidden_fcs_audio.0."}  # fmt: skip


def tiny(name: str) -> OutputProjectorConfig:
    raw = json.loads((FIXTURES / "tiny" / f"{name}.json").read_text())
    return registry.output_projector_config(
        "qformer" if name == "qformer" else "transformer",
        hidden_dim=raw.get("hidden_dim") or raw["hidden_size"],
        num_layers=raw.get("num_layers") or raw["num_hidden_layers"],
        num_heads=raw.get("nhead") or raw["num_attention_heads"],
        feedforward_dim=raw.get("dim_feedforward") or raw["intermediate_size"],
        **{key: raw[key] for key in ("in_dim", "out_dim", "num_input_tokens", "num_output_tokens")},
    )


def relative_table(kind: str, prefix: str) -> Table:
    table = OUTPUT[kind]
    return Table(tuple(prefixed(table.rules, torch=prefix)), tuple(prefix + pattern for pattern in table.ignored))


def load_output(cfg: OutputProjectorConfig, folder: str, prefix: str, *, allow_unused: bool = False) -> nnx.Module:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: registry.build(cfg, rngs=make_rngs(0))))
    table = relative_table(registry.kind_of(cfg), prefix)
    return nnx.merge(
        graphdef, matching.load(open_checkpoint(FIXTURES / folder), state, table, allow_unused=allow_unused)
    )


@jax.jit
def apply(projector, hidden, token_embeddings):
    return projector(hidden, token_embeddings)


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_transformer_matches_released_layout(modality):
    """Weights of a delta checkpoint, inputs and outputs of the original layer."""
    arrays = np.load(FIXTURES / "npz" / f"text_fc_{modality}.npz")
    projector = load_output(tiny(f"text_fc_{modality}"), "nextgpt", PREFIXES[modality], allow_unused=True)
    out = apply(projector, arrays["in_hidden"], arrays["in_token_embs"])
    assert relative_error(out, arrays["out"]) < 1e-5


def test_qformer_matches_original():
    arrays = np.load(FIXTURES / "npz" / "qformer.npz")
    projector = load_output(tiny("qformer"), "nextgpt_qformer", PREFIXES["image"])
    out = apply(projector, arrays["in_hidden"], arrays["in_token_embs"])
    assert relative_error(out, arrays["out"]) < 1e-5


class TorchTransformerProjector(torch.nn.Module):
    def __init__(self, cfg: OutputProjectorConfig):
        super().__init__()
        self.fc = torch.nn.Linear(cfg.in_dim, cfg.hidden_dim)
        self.tfm = torch.nn.Transformer(
            cfg.hidden_dim, cfg.num_heads, cfg.num_layers, cfg.num_layers, cfg.feedforward_dim,
            dropout=0.0, batch_first=True, norm_first=True,
        )  # fmt: skip
        self.model = torch.nn.Linear(cfg.hidden_dim, cfg.out_dim)
        self.query_embs = torch.nn.Parameter(torch.randn(1, cfg.num_output_tokens, cfg.hidden_dim))

    def forward(self, x, embeddings):
        return self.model(self.tfm(self.fc(x + embeddings), self.query_embs.repeat(x.shape[0], 1, 1)))


def test_transformer_matches_torch_in_values_and_gradients():
    torch.manual_seed(0)
    cfg = registry.output_projector_config("transformer", 24, 10, 3, 5, hidden_dim=16, num_layers=2, num_heads=2,
                                feedforward_dim=20)  # fmt: skip
    original = randomise(TorchTransformerProjector(cfg)).train()  # eval() would take torch's fused kernels
    projector = load_into(lambda: registry.build(cfg, rngs=make_rngs(0)), OUTPUT["transformer"], original)
    hidden, embeddings = np.random.default_rng(0).normal(size=(2, 4, 3, 24)).astype(np.float32)
    expected = original(torch.from_numpy(hidden), torch.from_numpy(embeddings))
    expected.square().mean().backward()
    graphdef, state = nnx.split(projector)

    @jax.jit
    def value_and_gradients(state):
        def loss(state):
            out = nnx.merge(graphdef, state)(jnp.asarray(hidden), jnp.asarray(embeddings))
            return jnp.square(out).mean(), out

        gradients, out = jax.grad(loss, has_aux=True)(state)
        return out, gradients

    out, gradients = value_and_gradients(state)
    assert relative_error(out, expected) < 1e-5
    ours = matching.export(gradients, OUTPUT["transformer"])
    for name, parameter in original.named_parameters():
        assert relative_error(ours[name], parameter.grad) < 1e-4, name
    for name, value in exported(projector, OUTPUT["transformer"]).items():
        assert torch.equal(value, original.state_dict()[name]), name


def test_linear_maps_the_first_tokens():
    cfg = registry.output_projector_config("linear", 6, 4, 3, 2)
    original = torch.nn.Sequential()
    original.model = torch.nn.Linear(6, 4)
    projector = load_into(lambda: registry.build(cfg, rngs=make_rngs(0)), OUTPUT["linear"], original)
    hidden, embeddings = np.random.default_rng(0).normal(size=(2, 5, 3, 6)).astype(np.float32)
    expected = original(torch.from_numpy(hidden + embeddings))[:, :2]
    assert relative_error(projector(jnp.asarray(hidden), jnp.asarray(embeddings)), expected) < 1e-6


@pytest.mark.parametrize("prefix", ["llama_proj", "mm_input_projector"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_input_projection_matches_torch(kind, prefix):
    torch.manual_seed(0)
    inner = torch.nn.Linear(6, 10)
    if kind == "mlp":
        inner = torch.nn.Sequential(inner, torch.nn.GELU(), torch.nn.Linear(10, 10))
    original = torch.nn.Sequential()
    original.add_module(prefix, inner)
    module = registry.INPUT_PROJECTORS[kind].module
    projector = load_into(lambda: module(6, 10, rngs=make_rngs(0)), INPUT[kind], original)
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    assert relative_error(projector(jnp.asarray(x)), inner(torch.from_numpy(x))) < 1e-6


def abstract(make) -> nnx.State:
    return nnx.state(nnx.eval_shape(make))


def count(state) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    shapes = json.loads((FIXTURES / "manifests" / f"{name}.json").read_text())["state_dict"]
    return {key: tuple(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("kind", "modality", "sizes", "parameters"),
    [
        ("transformer", "image", (768, 4, 77), 31_958_784),
        ("transformer", "audio", (512, 8, 1), 31_788_544),
        ("transformer", "video", (1024, 24, 77), 32_090_112),
        ("qformer", "image", (768, 4, 77), 22_701_312),
        ("qformer", "audio", (512, 8, 1), 22_446_080),
        ("qformer", "video", (1024, 24, 77), 22_898_176),
    ],
)
def test_published_sizes(kind, modality, sizes, parameters):
    cfg = registry.output_projector_config(kind, 4096, *sizes)
    state = abstract(lambda: registry.build(cfg, rngs=make_rngs(0)))
    assert count(state) == parameters
    suffix = "_qformer" if kind == "qformer" else ""
    wanted = manifest(f"text_fc_{modality}{suffix}")
    wanted.pop("Qformer.bert.embeddings.position_ids", None)  # a buffer
    assert matching.torch_shapes(state, OUTPUT[kind]) == wanted


def test_published_size_of_the_input_projection():
    state = abstract(lambda: registry.INPUT_PROJECTORS["linear"].module(1024, 4096, rngs=make_rngs(0)))
    assert count(state) == 4_198_400
    wanted = {f"llama_proj.{key}": shape for key, shape in manifest("llama_proj").items()}
    assert matching.torch_shapes(state, INPUT["linear"]) == wanted


@pytest.mark.parametrize("kind", ["transformer", "qformer", "linear"])
def test_fresh_projectors_give_the_asked_shape_and_dtype(kind):
    cfg = registry.output_projector_config(
        kind, 12, 5, 4, 3, hidden_dim=8, num_layers=1, num_heads=2, feedforward_dim=16
    )
    x = jnp.ones((2, 4, 12), jnp.bfloat16)
    out = jax.jit(lambda: registry.build(cfg, rngs=make_rngs(0))(x, x))()
    assert bool(jnp.isfinite(out).all())
    assert out.shape == (2, 3, 5)
    assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"kind": "mlp"}, "not one of"),
        ({"kind": "linear", "num_output_tokens": 5}, "can't make 5 tokens of 4"),
        ({"kind": "transformer", "num_heads": 3}, "does not divide into 3 heads"),
        ({"kind": "transformer", "num_input_tokens": 0}, "must be positive"),
    ],
)
def test_bad_configs_say_why(arguments, reason):
    sizes = {"in_dim": 8, "out_dim": 4, "num_input_tokens": 4, "num_output_tokens": 2}
    with pytest.raises(ValueError, match=reason):
        registry.output_projector_config(**{**sizes, **arguments})


def test_a_projector_of_another_kind_does_not_load():
    cfg = registry.output_projector_config("linear", 24, 10, 3, 3)
    other = registry.output_projector_config("transformer", 24, 10, 3, 5, hidden_dim=16, num_layers=1, num_heads=2)
    state = abstract(lambda: registry.build(cfg, rngs=make_rngs(0)))
    with pytest.raises(matching.ConversionError, match="unexpected query_embs"):
        matching.load(checkpoint_of(TorchTransformerProjector(other)), state, OUTPUT["linear"])

"""Merged adapters against peft's: PeftModel.from_pretrained(...).merge_and_unload()."""

import functools
import pathlib
import tempfile
import warnings

import peft
import pytest
import torch
import transformers
from hypothesis import Phase, assume, event, given, settings
from hypothesis import strategies as st

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights import components, matching
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint
from tests.models.llms import reference
from tests.models.llms.reference import config_of
from tests.parity import checkpoint_of, relative_error

CLASSES = {"llama": transformers.LlamaForCausalLM, "qwen2": transformers.Qwen2ForCausalLM}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base(kind: str, tied: bool) -> transformers.PreTrainedModel:
    return reference.original(CLASSES[kind], tie_word_embeddings=tied)


@functools.cache
def part(kind: str, tied: bool):
    config = config_of(base(kind, tied))
    return config, components.llm_part(config)


def save(folder: str, kind: str, tied: bool, options: dict) -> None:
    """A random adapter, saved by peft."""
    wrapped = peft.get_peft_model(base(kind, tied), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in wrapped.parameters() if p.requires_grad):
            parameter.add_(0.2 * torch.randn(parameter.shape))
    wrapped.save_pretrained(folder)


def merged_by_peft(folder: str, kind: str, tied: bool) -> dict[str, torch.Tensor]:
    return peft.PeftModel.from_pretrained(base(kind, tied), folder).merge_and_unload().state_dict()


def merged(folder, kind: str, tied: bool):
    config, model = part(kind, tied)
    weights = matching.match(checkpoint_of(base(kind, tied)), model.state, model.table).parameters
    modules = components.adapted_modules(config, components.lora_config(folder))
    return matching.export_parameters(modules.merge(weights, open_checkpoint(folder)), model.state, model.table)


def compare(ours, theirs: dict[str, torch.Tensor], options: dict) -> None:
    changed_base = options.get("init_lora_weights") in ("pissa", "olora")
    for key in ours:  # LAPACK and numpy decompose in float32, a little differently
        assert relative_error(ours[key], theirs[key].numpy()) < (1e-4 if changed_base else 2e-6), key


def check(folder, options: dict, kind: str = "llama", tied: bool = False) -> None:
    save(folder, kind, tied, options)
    ours, theirs = merged(folder, kind, tied), merged_by_peft(folder, kind, tied)
    assert ours.keys() == theirs.keys() - ({"lm_head.weight"} if tied else set())
    compare(ours, theirs, options)


SUPPORTED = {
    "plain": {"target_modules": ["q_proj", "down_proj"]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "ranks": {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\..*": 1}},
    "alphas": {"target_modules": ["q_proj", "o_proj"], "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 5}},
    "pattern": {"target_modules": r".*\.(q|v)_proj"},
    "full names": {"target_modules": ["model.layers.1.mlp.up_proj", "o_proj"], "layers_to_transform": [0]},
    "all linear": {"target_modules": "all-linear"},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    "excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\.self_attn\.q_proj"},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "k_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"], "use_dora": True},
    "pissa": {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}},
    "olora": {"target_modules": ["up_proj", "down_proj"], "init_lora_weights": "olora", "lora_alpha": 5},
    "pissa, dora": {"target_modules": ["q_proj"], "init_lora_weights": "pissa", "use_dora": True},
    "gaussian": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    "mica": {"target_modules": ["q_proj"], "init_lora_weights": "mica"},
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_merges_as_peft_does(name, tmp_path):
    check(tmp_path, {"r": 4, "lora_alpha": 8, **SUPPORTED[name]})


def test_the_saved_base_of_an_initialization_counts(tmp_path):
    """save_embedding_layers writes the rows below the updates, which peft loads over its own."""
    options = {"target_modules": ["lm_head", "embed_tokens"], "init_lora_weights": "pissa"}
    check(tmp_path, options)
    assert any("base_layer" in key for key in open_checkpoint(tmp_path))


def sometimes(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | st.none() | strategy


def consistent(options: dict) -> dict:
    """Without layers where peft refuses them."""
    if isinstance(options["target_modules"], str):
        options["layers_to_transform"] = None
    if options["layers_to_transform"] is None:
        options["layers_pattern"] = None
    return options


NAMES = st.sampled_from([*PROJECTIONS, "embed_tokens", "lm_head", "model.layers.1.self_attn.q_proj", "0.mlp.up_proj"])
PATTERNS = st.sampled_from(["q_proj", r".*\.mlp\..*_proj", r"model\.layers\.0\..*_proj", ".*o_proj", "embed_tokens"])
INITIALIZATIONS = [False, "gaussian", "pissa", "pissa_niter_2", "olora", "eva", "lora_ga", "mica"]
OPTIONS = st.fixed_dictionaries(
    {
        "r": st.integers(1, 4),
        "lora_alpha": st.integers(1, 9),
        "target_modules": st.lists(NAMES, min_size=1, max_size=4, unique=True) | PATTERNS | st.just("all-linear"),
        "exclude_modules": sometimes(st.lists(NAMES, max_size=2) | PATTERNS),
        "modules_to_save": sometimes(
            st.lists(st.sampled_from(["embed_tokens", "lm_head", "norm", "mlp", "score", "k_proj"]), max_size=2)
        ),
        "layers_to_transform": sometimes(st.integers(0, 2) | st.lists(st.integers(0, 1), max_size=2)),
        "layers_pattern": sometimes(st.sampled_from(["layers", "h", ["h", "layers"], []])),
        "rank_pattern": st.dictionaries(NAMES | PATTERNS, st.integers(1, 4), max_size=2),
        "alpha_pattern": st.dictionaries(NAMES | PATTERNS, st.integers(1, 9), max_size=2),
        "use_rslora": st.booleans(),
        "use_dora": st.sampled_from([False, False, True]),
        "init_lora_weights": st.sampled_from([True] * 3 + INITIALIZATIONS),
        "bias": st.sampled_from(["none"] * 6 + ["all", "lora_only"]),
        "fan_in_fan_out": st.sampled_from([False, False, False, True]),
        "lora_bias": st.sampled_from([False] * 7 + [True]),
        "lora_dropout": st.sampled_from([0.0, 0.1]),
        "trainable_token_indices": st.sampled_from([None] * 7 + [[0, 3]]),
    }
).map(consistent)  # fmt: skip


@settings(max_examples=30, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # each costs 0.2 s
@given(kind=st.sampled_from(sorted(CLASSES)), tied=st.sampled_from([False, False, True]), options=OPTIONS)
def test_a_random_adapter_is_merged_as_by_peft_or_refused(kind, tied, options):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            save(folder, kind, tied, options)
            theirs = merged_by_peft(folder, kind, tied)
        except Exception:  # peft refuses by exceptions of many types
            assume(False)
        try:
            ours = merged(pathlib.Path(folder), kind, tied)
        except UserError as error:
            assert "\n" not in str(error)
            event("refused")
            return
        event("merged")
        compare(ours, theirs, options)


@pytest.mark.parametrize(
    ("options", "tied", "reason"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, True, "lm_head .* serves both as embedding and as head"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True, "serves both"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}, False, "layers.0.mlp, a group of modules: merge"),
        ({"target_modules": ["q_proj", "c_attn"]}, False, "names 'c_attn', which the language model does not have"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_says_why(options, tied, reason, tmp_path):
    save(tmp_path, "llama", tied, options)
    with pytest.raises(UserError, match=reason):
        merged(tmp_path, "llama", tied)

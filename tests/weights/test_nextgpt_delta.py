"""NExT-GPT's trained weights in all layouts that were published."""

import pytest
from flax import nnx

from nextgpt_jax.models.nextgpt import NExTGPTModel
from nextgpt_jax.weights import matching, nextgpt_delta, orbax_params
from nextgpt_jax.weights.torch_checkpoint import open_checkpoint
from tests import FIXTURES
from tests.models.test_nextgpt import tiny_config


@pytest.mark.parametrize("delta", ["nextgpt", "nextgpt_old_peft", "nextgpt_stage2", "newer names"])
def test_deltas_in_all_spellings(delta, tmp_path):
    cfg = tiny_config()
    state = nnx.state(nnx.eval_shape(lambda: NExTGPTModel(cfg, rngs=nnx.Rngs(0))))
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

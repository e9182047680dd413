"""The paper's system: ImageBind huge, Vicuna-7B v0, Stable Diffusion 1.5.

Put the weights, in the hub's folder layout, below weights/ or name other folders: --config.model.llm=...
"""

from nextgpt_jax.command import unknown_variant
from nextgpt_jax.config import ExperimentConfig

VARIANTS = ("infer", "stage1", "stage2", "stage3")


def get_config(variant: str = "infer") -> ExperimentConfig:
    """`infer` answers with the released delta; the stages are the paper's, on the reference's dataset files."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = ExperimentConfig()
    config.model.llm = "weights/vicuna-7b-v0"
    config.model.encoder = "weights/imagebind"
    config.model.image_decoder = "weights/stable-diffusion-v1-5"
    config.data.captions = "data/T-X_pair_data/cc3m/cc3m.json"
    config.data.instructions = "data/IT_data/instructions.json"
    config.data.media = "data/IT_data/images" if variant == "stage3" else "data/T-X_pair_data/cc3m/images"
    config.data.max_inputs = {"stage1": 1, "stage2": 0, "stage3": 4}.get(variant, 0)
    config.data.max_outputs = {"stage1": 0, "stage2": 1, "stage3": 4}.get(variant, 0)
    config.data.batch_size = 16 if variant != "stage3" else 4
    config.optim.lr = 4e-4 if variant != "stage3" else 5e-4
    if variant == "infer":
        config.model.delta = "weights/nextgpt-7b-tiva-v0"
    else:
        config.train.stage = variant
    config.train.remat = True
    return config

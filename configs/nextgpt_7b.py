"""The paper's system: ImageBind huge, Vicuna-7B v0, Stable Diffusion 1.5, Zeroscope v2 576w, AudioLDM-L.

Put the weights, in the hub's folder layout, below weights/ or name other folders: --config.model.llm=...
"""

from nextgpt_jax.config import ExperimentConfig
from nextgpt_jax.config_files import unknown_variant

VARIANTS = ("infer", "stage1", "stage2", "stage3")


def get_config(variant: str = "infer") -> ExperimentConfig:
    """`infer` answers with the released delta; the stages are the paper's, on the reference's dataset files."""
    if variant not in VARIANTS:
        raise unknown_variant(variant, VARIANTS)
    config = ExperimentConfig()
    # The dot marks a path: OWNER/NAME is a hub id unless the folder OWNER exists.
    config.model.llm = "./weights/vicuna-7b-v0"
    config.model.encoder = "./weights/imagebind"
    config.model.image_decoder = "./weights/stable-diffusion-v1-5"
    config.model.video_decoder = "./weights/zeroscope_v2_576w"
    config.model.audio_decoder = "./weights/audioldm-l-full"
    # Media are in images/, videos/ and audios/ next to each file.
    pairs = ("cc3m/cc3m.json", "webvid/webvid.json", "audiocap/audiocap.json")
    config.data.captions = ",".join(f"data/T-X_pair_data/{name}" for name in pairs)
    config.data.instructions = "data/IT_data/instructions.json"
    config.data.batch_size = 16 if variant != "stage3" else 4
    config.optim.lr = 4e-4 if variant != "stage3" else 5e-4
    if variant == "infer":
        config.model.delta = "./weights/nextgpt-7b-tiva-v0"
    else:
        config.train.stage = variant
    config.train.remat = "full"
    return config

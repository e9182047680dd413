"""What is downloaded of published repositories, from the names of their files."""

import json

import pytest

from nextgpt_jax.errors import UserError
from nextgpt_jax.weights.hub_files import companion_files, weights_files

TOKENIZER = (
    "tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json"
)
PIPELINE = f"README.md model_index.json scheduler/scheduler_config.json {TOKENIZER}"
LLAMA_TOKENIZER = "special_tokens_map.json tokenizer.json tokenizer.model tokenizer_config.json"


def shards(stem: str, suffix: str, count: int) -> str:
    return " ".join(f"{stem}-{i:05}-of-{count:05}.{suffix}" for i in range(1, count + 1))


# By repository: component, class of the pipeline, the files to take, the files to leave.
REPOSITORIES = {
    "runwayml/stable-diffusion-v1-5": (
        "decoder",
        "StableDiffusionPipeline",
        f"{PIPELINE} text_encoder/config.json unet/config.json"
        " text_encoder/model.safetensors unet/diffusion_pytorch_model.safetensors vae/config.json"
        " vae/diffusion_pytorch_model.safetensors",
        ".gitattributes v1-5-pruned-emaonly.ckpt v1-5-pruned-emaonly.safetensors v1-5-pruned.ckpt"
        " v1-5-pruned.safetensors v1-inference.yaml feature_extractor/preprocessor_config.json "
        "safety_checker/config.json safety_checker/model.fp16.safetensors safety_checker/model.safetensors "
        "safety_checker/pytorch_model.bin safety_checker/pytorch_model.fp16.bin text_encoder/model.fp16.safetensors"
        " text_encoder/pytorch_model.bin"
        " text_encoder/pytorch_model.fp16.bin unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.bin"
        " unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.non_ema.bin"
        " unet/diffusion_pytorch_model.non_ema.safetensors vae/diffusion_pytorch_model.bin"
        " vae/diffusion_pytorch_model.fp16.bin vae/diffusion_pytorch_model.fp16.safetensors",
    ),
    "cerspense/zeroscope_v2_576w": (
        "decoder",
        "TextToVideoSDPipeline",
        f"{PIPELINE} text_encoder/config.json unet/config.json"
        " text_encoder/pytorch_model.bin unet/diffusion_pytorch_model.bin vae/config.json"
        " vae/diffusion_pytorch_model.bin",
        ".gitattributes zs2_576w/open_clip_pytorch_model.bin zs2_576w/text2video_pytorch_model.pth",
    ),
    "damo-vilab/text-to-video-ms-1.7b": (
        "decoder",
        "TextToVideoSDPipeline",
        f"{PIPELINE} text_encoder/config.json unet/config.json"
        " text_encoder/model.safetensors unet/diffusion_pytorch_model.safetensors vae/config.json"
        " vae/diffusion_pytorch_model.safetensors",
        ".gitattributes text_encoder/model.fp16.safetensors text_encoder/pytorch_model.bin"
        " text_encoder/pytorch_model.fp16.bin unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.bin"
        " unet/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.bin"
        " vae/diffusion_pytorch_model.fp16.bin vae/diffusion_pytorch_model.fp16.safetensors",
    ),
    "cvssp/audioldm-l-full": (
        "decoder",
        "AudioLDMPipeline",
        f"{PIPELINE} tokenizer/tokenizer.json"
        " text_encoder/config.json text_encoder/pytorch_model.bin unet/config.json unet/diffusion_pytorch_model.bin"
        " vae/config.json vae/diffusion_pytorch_model.bin vocoder/config.json vocoder/pytorch_model.bin",
        ".gitattributes",
    ),
    "meta-llama/Llama-2-7b-hf": (
        "llm",
        "",
        f"LICENSE.txt README.md config.json generation_config.json model.safetensors.index.json {LLAMA_TOKENIZER} "
        + shards("model", "safetensors", 2),
        ".gitattributes USE_POLICY.md pytorch_model.bin.index.json " + shards("pytorch_model", "bin", 2),
    ),
    "meta-llama/Llama-3.1-8B": (
        "llm",
        "",
        "LICENSE README.md config.json generation_config.json model.safetensors.index.json special_tokens_map.json"
        f" tokenizer.json tokenizer_config.json {shards('model', 'safetensors', 4)}",
        ".gitattributes USE_POLICY.md original/consolidated.00.pth original/params.json original/tokenizer.model",
    ),
    "lmsys/vicuna-7b-v1.5": (
        "llm",
        "",
        "README.md config.json generation_config.json pytorch_model.bin.index.json special_tokens_map.json"
        f" tokenizer.model tokenizer_config.json {shards('pytorch_model', 'bin', 2)}",
        ".gitattributes",
    ),
    "Qwen/Qwen2.5-7B": (
        "llm",
        "",
        "LICENSE README.md config.json generation_config.json merges.txt model.safetensors.index.json tokenizer.json"
        f" tokenizer_config.json vocab.json {shards('model', 'safetensors', 4)}",
        ".gitattributes",
    ),
    "an adapter with checkpoints of its training": (
        "lora",
        "",
        "README.md adapter_config.json adapter_model.safetensors",
        f"adapter_model.bin model.safetensors config.json training_args.bin checkpoint-100/adapter_model.bin"
        f" checkpoint-100/optimizer.pt {LLAMA_TOKENIZER}",
    ),
    "a model with an adapter and other frameworks' files": (
        "llm",
        "",
        f"README.md config.json pytorch_model.bin chat_template.jinja additional_chat_templates/rag.jinja "
        f"{LLAMA_TOKENIZER}",
        "adapter_config.json adapter_model.safetensors flax_model.msgpack tf_model.h5 rust_model.ot model.onnx"
        " onnx/model.onnx onnx/config.json openvino/openvino_model.bin openvino_model.bin coreml/weights/weight.bin"
        " model.gguf consolidated.00.pth optimizer.pt",
    ),
    "a single-file checkpoint": ("decoder", "", "README.md LICENSE.md sd.safetensors sd.yaml", "sd.ckpt img/cat.png"),
    "ImageBind": ("encoder", "", "README.md imagebind_huge.pth", ".gitattributes"),
    "a delta": (
        "delta",
        "",
        "README.md added_tokens.json config.json nextgpt_config.json pytorch_model.pt tokenizer.model",
        "training_args.bin global_step9/mp_rank_00_model_states.pt training.log",
    ),
}


def downloaded(names, component, folder, pipeline=""):
    """Both steps; between them, what the first one brought is in `folder`."""
    first = companion_files(names, component)
    for name in first:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"_class_name": pipeline} if name.endswith("model_index.json") else {}
        if name.endswith(".index.json"):
            stem, suffix = name.removesuffix(".index.json").rsplit(".", 1)
            parts = [n for n in names if n.startswith(f"{stem}-0") and n.endswith(suffix)]
            content = {"weight_map": {f"key{i}": part.rpartition("/")[2] for i, part in enumerate(parts)}}
        path.write_text(json.dumps(content))
    return sorted({*first, *weights_files(names, component, folder)})


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_published_repositories(repository, tmp_path):
    component, pipeline, taken, left = REPOSITORIES[repository]
    names = [*left.split(), *taken.split()]
    assert downloaded(names, component, tmp_path, pipeline) == sorted(taken.split())


def test_names_of_families_are_those_of_components(tmp_path):
    names = ["config.json", "model.safetensors"]
    assert downloaded(names, "llama", tmp_path) == names


def test_a_saved_system(tmp_path):
    """As save_pretrained writes it: each part as by itself."""
    taken = ["nextgpt.json", "llm/config.json", "llm/model.safetensors", "enc/imagebind_huge.pth", "points/config.json",
             "points/model.safetensors", "delta/pytorch_model.pt", "sd/model_index.json", "sd/unet/config.json",
             "sd/unet/diffusion_pytorch_model.bin"]  # fmt: skip
    left = ["llm/pytorch_model.bin", "sd/safety_checker/model.safetensors", "other/model.safetensors"]
    (tmp_path / "sd").mkdir()
    first = companion_files([*taken, *left], "nextgpt")
    model = {"llm": "llm", "encoder": "enc,points", "image_decoder": "sd", "video_decoder": "", "delta": "delta"}
    (tmp_path / "nextgpt.json").write_text(json.dumps({"model": {**model, "template": "vicuna"}}))
    (tmp_path / "sd" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    found = weights_files([*taken, *left], "nextgpt", tmp_path)
    assert sorted({*first, *found}) == sorted(taken)


def test_what_cannot_be_read_is_refused_before_its_weights_are_downloaded(tmp_path):
    with pytest.raises(UserError, match="_class_name='FluxPipeline' is no supported decoder"):
        downloaded(["model_index.json", "unet/diffusion_pytorch_model.bin"], "decoder", tmp_path, "FluxPipeline")
    with pytest.raises(
        UserError, match="several checkpoints: download one of a.ckpt, b.safetensors, and give the file"
    ):
        downloaded(["a.ckpt", "b.ckpt", "b.safetensors"], "decoder", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    with pytest.raises(UserError, match="points outside its folder"):
        weights_files(["model.safetensors.index.json"], "llm", tmp_path)


def test_a_tokenizer_by_itself_or_of_a_pipeline():
    names = ["vocab.json", "merges.txt", "model.safetensors", "tokenizer/vocab.json", "unet/config.json", "README.md"]
    assert companion_files(names, "tokenizer") == ["README.md", "merges.txt", "tokenizer/vocab.json", "vocab.json"]

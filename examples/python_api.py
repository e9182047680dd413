"""A tour of the Python API with the embedded keypad model: python examples/python_api.py [FOLDER]

Everything runs on a CPU. Files are written to FOLDER (default: outputs/python_api).
"""

import pathlib
import sys

import numpy as np

import nextgpt_jax as ng


def main(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = ng.NExTGPT.from_pretrained("keypad")
    print(f"reads {', '.join(model.input_modalities)}; generates {', '.join(model.output_modalities)}")

    # Text to image.
    reply = model("draw a seven")
    reply.images[0].save(folder / "seven.png")
    print(f"draw a seven -> {reply.text!r}, {reply.images[0].size}")

    # Media in: files, PIL images or arrays. Here the image that was just generated.
    reply = model("which digit is this?", images=[reply.images[0]])
    print(f"which digit is this? -> {reply.text!r}")

    # Several requests at once, each with its own options.
    config = ng.GenerationConfig(seed=3, num_inference_steps=10)
    requests = [
        ng.Request("play the tone of key three", generation_config=config),
        ng.Request("hello", output_modalities=[]),
        ng.Request("show me a two moving left", output_modalities=["video"], generation_config=config),
    ]
    for request, reply in zip(requests, model.generate_batch(requests), strict=True):
        print(f"{request.prompt} -> {reply.text!r}, {', '.join(path.name for path in reply.save(folder))}")

    # A conversation.
    chat = model.chat()
    samples, rate = chat.send("play the tone of key five").audios[0]
    print(f"a tone of {len(samples) / rate:.1f} s; then: {chat.send('now draw that digit').text!r}")

    # Text as it is decoded, then the media.
    for event in model.stream("show me a nine, then play its tone"):
        print(event.text, end="", flush=True)
        if event.medium is not None:
            print(f" [{event.medium.modality}]", end="")
    print()

    # The parts on their own.
    imagebind = ng.ImageBind.from_pretrained("keypad")
    found = imagebind.embed(images=[folder / "seven.png"], texts=["a handwritten seven", "a handwritten two"])
    image, texts = found["images"], found["texts"]
    cosine = image @ texts.T / np.linalg.norm(image, axis=-1)[:, None] / np.linalg.norm(texts, axis=-1)
    print(f"the drawing resembles 'seven' with {cosine[0, 0]:.2f} and 'two' with {cosine[0, 1]:.2f}")
    diffusion = ng.StableDiffusion.from_pretrained("keypad")
    diffusion("a handwritten four", num_inference_steps=20, guidance_scale=4.0).images[0].save(folder / "four.png")

    # A model as one folder, which from_pretrained loads again.
    if not (folder / "saved").exists():
        model.save_pretrained(folder / "saved")
    again = ng.NExTGPT.from_pretrained(folder / "saved")
    print(f"saved and loaded: {again('what is two plus three?').text!r}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/python_api"))

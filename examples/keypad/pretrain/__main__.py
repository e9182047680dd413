"""Pretrains the frozen components of the keypad world. The repository contains the results.

    python -m examples.keypad.pretrain COMPONENT [--output examples/keypad/weights/base]

The components, in a valid order: llama; imagebind, variations (the encoder, in two steps); vae, diffusion (the image
decoder); video-text, video; audio-text, audio-vae, vocoder, audio.

Each is saved in the hub's layout: config.json, safetensors with PyTorch's names (float16), tokenizer.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from examples.keypad.pretrain import audio, video
from examples.keypad.pretrain.imagebind import imagebind
from examples.keypad.pretrain.images import diffusion, vae
from examples.keypad.pretrain.llama import llama
from examples.keypad.pretrain.variations import variations
from nextgpt_jax.cli.flags import run_command

COMPONENTS = {
    "llama": llama,
    "imagebind": imagebind,
    "variations": variations,
    "vae": vae,
    "diffusion": diffusion,
    "video-text": video.text_encoder,
    "video": video.video,
    "audio-text": audio.text_encoder,
    "audio-vae": audio.audio_vae,
    "vocoder": audio.vocoder,
    "audio": audio.audio,
}

FOLDER = pathlib.Path(__file__).parents[1] / "weights" / "base"


def main(argv: Sequence[str]) -> None:
    """Parses flags and trains a component."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("component", choices=COMPONENTS)
    parser.add_argument("--output", type=pathlib.Path, default=FOLDER)
    parser.add_argument("--steps", type=int, help="number of training steps, instead of the default")
    args = parser.parse_args(argv[1:])
    COMPONENTS[args.component](args.output, **({"steps": args.steps} if args.steps else {}))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))

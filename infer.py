"""Answers prompts: python infer.py --config=configs/keypad.py --prompt="draw a seven" --output=outputs"""

from nextgpt_jax.cli.infer import run

if __name__ == "__main__":
    run()

"""Trains a stage: python train.py --config=configs/keypad.py:stage1 --workdir=runs/stage1"""

from nextgpt_jax.cli.train import run

if __name__ == "__main__":
    run()

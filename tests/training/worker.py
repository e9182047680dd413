"""One process of a job that trains the third stage and prints the loss of every step.

python -m tests.training.worker PORT PROCESSES ID ROOT WORKDIR STEPS [RATE]

ROOT is the tiny system, trained on images, or "keypad".
"""

import pathlib
import sys

from configs import keypad
from nextgpt_jax.cli.flags import run_command
from nextgpt_jax.config import MeshConfig
from nextgpt_jax.training import distributed
from tests import tiny


def main(argv) -> None:
    port, processes, number, root, workdir, steps = argv[1:7]
    distributed.join(f"127.0.0.1:{port}", int(processes), int(number))
    from nextgpt_jax.training import loop, report
    from tests.training.recorder import Recorder

    class Printer(Recorder):
        def write(self, step, metrics):
            print("loss", step, repr(metrics["loss"]), flush=True)

    report.MetricsLog = Printer
    if root == "keypad":
        config = keypad.get_config("stage3")
        config.data.bucket_boundaries, config.data.max_length = (), 128
        config.mesh = MeshConfig(data=int(processes))  # docs/tpu.md says why
    else:
        config = tiny.experiment(pathlib.Path(root), "stage3", tiny.PICTURES)
        config.mesh = MeshConfig(fsdp=int(processes), data=1)
    config.data.batch_size = 4
    config.train.steps, config.train.log_every, config.train.save_every = int(steps), 1, 4
    if len(argv) > 7:
        config.optim.lr = float(argv[7])
    loop.train(config, workdir)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))

"""One process of a job that trains the third stage and prints the loss of every step.

The only process of a job prints, too, what each step was trained on: a number for each example, 0 for a skipped one.

python -m tests.training.worker PORT PROCESSES ID ROOT WORKDIR STEPS [RATE]

ROOT is the tiny system, trained on images, or "keypad".
"""

import pathlib
import sys
import zlib

import numpy as np

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
    if int(processes) == 1:
        call = report.Report.call

        def printing(self, step, update, arguments, shape):
            tokens = np.asarray(arguments[3]["tokens"])
            print("examples", step, *(zlib.crc32(row.tobytes()) if row.any() else 0 for row in tokens), flush=True)
            return call(self, step, update, arguments, shape)

        report.Report.call = printing
    if root == "keypad":
        config = keypad.get_config("stage3")
        config.data.bucket_boundaries, config.data.max_length, config.data.max_truncated = (), 128, 1.0
        config.mesh = MeshConfig(data=int(processes))  # docs/tpu.md says why
    else:
        config = tiny.experiment(pathlib.Path(root), "stage3", tiny.PICTURES)
        config.mesh = MeshConfig(fsdp=int(processes), data=1)
    config.data.batch_size, config.data.max_skipped = 4, 0.2
    config.train.steps, config.train.log_every, config.train.save_every = int(steps), 1, 4
    if len(argv) > 7:
        config.optim.lr = float(argv[7])
    loop.train(config, workdir)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))

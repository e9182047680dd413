"""Metrics and samples of a run for Weights & Biases, an extra: pip install 'nextgpt-jax[wandb]'."""

import html
import importlib.util
import pathlib
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from nextgpt_jax import media
from nextgpt_jax.errors import UserError, first_line
from nextgpt_jax.files import atomic_write, is_remote
from nextgpt_jax.training.sampling import Sample

_ID = "wandb_id.txt"  # in the workdir


def check_wandb(project: str) -> None:
    """Raises UserError if a project is given and the package is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError("train.wandb_project needs wandb: pip install 'nextgpt-jax[wandb]', or leave it empty")


class WandbLog:
    """Logs to a run of wandb. A resumed run goes on with its id, which is kept in the workdir.

    Where and whether data are sent is wandb's own setting: WANDB_MODE=offline keeps them in WORKDIR/wandb, for `wandb
    sync`.
    """

    def __init__(self, folder: pathlib.Path, project: str, settings: Mapping[str, Any]):
        """
        Args:
          folder: of the run.
          settings: the experiment config, as JSON values.

        Raises:
          UserError: wandb cannot start.
        """
        import wandb

        self._wandb, file = wandb, folder / _ID
        if not file.exists():
            with atomic_write(file) as temporary:
                temporary.write_text(uuid.uuid4().hex[:8])
        try:
            self._run = wandb.init(
                project=project,
                id=file.read_text().strip(),
                name=folder.name,
                dir=None if is_remote(folder) else str(folder),
                config=dict(settings),
                resume="allow",
            )
        except Exception as error:  # of many types: no key, no network, no such project
            raise UserError(
                f"train.wandb_project: wandb cannot start ({first_line(error)}): run `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from None
        # Not wandb's own step, which must grow: a resumed run makes some steps again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of a step."""
        self._run.log({"step": step, **metrics})

    def write_samples(self, step: int, samples: Sequence[Sample], group: str = "samples") -> None:
        """Logs answers to prompts."""
        shown: dict[str, Any] = {"step": step}
        with tempfile.TemporaryDirectory() as folder:
            for i, sample in enumerate(samples):
                text = html.escape(f"{sample.prompt}\n\n{sample.text}")
                shown[f"{group}/{i}"] = self._wandb.Html(f"<pre>{text}</pre>")
                for k, medium in enumerate(sample.media):
                    name = f"{group}/{i}_{k}_{medium.modality}"
                    if medium.modality == "image":
                        shown[name] = self._wandb.Image(medium.content)
                    elif medium.modality == "audio":
                        samples_of, rate = medium.content
                        shown[name] = self._wandb.Audio(samples_of, sample_rate=rate)
                    elif medium.modality == "video":
                        path = pathlib.Path(folder) / f"{i}_{k}.mp4"
                        media.write("video", path, medium.content)
                        shown[name] = self._wandb.Video(str(path), format="mp4")
            self._run.log(shown)

    def close(self) -> None:
        """Ends the process's part of the run."""
        self._run.finish()

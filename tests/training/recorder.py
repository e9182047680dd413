"""What the training loop logs, kept instead of written."""

from collections.abc import Mapping


class Recorder:
    """In the place of MetricsLog."""

    losses: dict[int, float] = {}

    def __init__(self, *_, **__):
        pass

    __enter__, __exit__ = lambda self: self, lambda self, *_: None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.losses[step] = metrics["loss"]

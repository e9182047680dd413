"""What the training loop logs, kept instead of written."""


class Recorder:
    """In the place of TensorBoard's writer."""

    losses: dict[int, float] = {}

    def __init__(self, *_, **__):
        pass

    __enter__, __exit__ = lambda self: self, lambda self, *_: None

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if name == "loss":
            self.losses[step] = value

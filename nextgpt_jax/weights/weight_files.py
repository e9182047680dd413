"""Which of several files in a folder hold its weights: the rules of transformers, diffusers and peft.

The rules see names only, so that they apply to a folder and to the list of a repository's files alike.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Collection

from nextgpt_jax.errors import UserError
from nextgpt_jax.models.encoders.imagebind import RELEASED_FILE

ADAPTER = "adapter_config.json"
INDICES = ("*.index.json", "*.index.*.json")  # patterns of all lists of shards
_INDEX = ".index.json"
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".onnx")
_PRECISION = "fp16"  # the variant that stands in for weights of full precision; others (ema) are other weights


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names that hold weights, the preferred ones first.

    Attributes:
      kind: the kind of folder, for messages.
      names: files, and indices of shards.
      has_variants: whether the names exist in half precision, too. These count if there is none of `names`.
    """

    kind: str
    names: tuple[str, ...]
    has_variants: bool = False

    @property
    def written(self) -> str:
        """The name of the file that export writes."""
        return next(name for name in self.names if not is_index(name))

    def choose(self, names: Collection[str]) -> str:
        """The file or index of shards among `names` that counts; empty: there is none."""
        known = self.names + (tuple(_variant(name) for name in self.names) if self.has_variants else ())
        return next((name for name in known if name in names), "")


def is_index(name: str) -> bool:
    """Whether a file lists the shards of a checkpoint."""
    return name.endswith((_INDEX, f".index.{_PRECISION}.json"))


def _variant(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{_PRECISION}.{suffix}"


def _with_index(*names: str) -> tuple[str, ...]:
    return tuple(name for file in names for name in (file, file + _INDEX))


# transformers prefers a file to an index, diffusers an index to a file: either may be left from an earlier save.
TRANSFORMERS = Layout("model of transformers", _with_index("model.safetensors", "pytorch_model.bin"), True)
DIFFUSERS = Layout(
    "model of diffusers",
    (
        "diffusion_pytorch_model.safetensors" + _INDEX,
        "diffusion_pytorch_model.safetensors",
        *_with_index("diffusion_pytorch_model.bin"),
    ),
    True,
)
PEFT = Layout("adapter of peft", ("adapter_model.safetensors", "adapter_model.bin"))
ENCODER = Layout("encoder", (*TRANSFORMERS.names, "imagebind_huge.safetensors", RELEASED_FILE), True)
DELTA = Layout("NExT-GPT delta", (*TRANSFORMERS.names, "pytorch_model.pt"))


def decoder_layout(part: str) -> Layout:
    """The layout of a decoder's part, by the name of its folder."""
    return DIFFUSERS if part in ("unet", "vae") else TRANSFORMERS


def find_weights(folder: pathlib.Path, layout: Layout | None = None) -> pathlib.Path:
    """The file or index of shards that holds the weights of a folder.

    Args:
      folder: the folder; those below it don't count.
      layout: None: that of the folder, which must not have weights of several kinds.

    Raises:
      UserError: there is none.
    """
    try:
        names = {file.name for file in folder.iterdir() if file.is_file()}
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error.strerror or error}") from None
    if layout is None:
        found = {layout.choose(names): layout for layout in (TRANSFORMERS, DIFFUSERS, PEFT, ENCODER, DELTA)}
        found.pop("", None)
        if len(found) > 1:
            raise UserError(f"{folder} holds weights of several kinds: give one of {', '.join(sorted(found))}")
        layout = next(iter(found.values()), TRANSFORMERS)
    if chosen := layout.choose(names):
        if layout is TRANSFORMERS and ADAPTER in names and PEFT.choose(names):
            warnings.warn(f"{folder} holds an adapter of peft, too, which is not merged", UserWarning, stacklevel=3)
        return folder / chosen
    raise UserError(f"{folder} holds no checkpoint (looked for {', '.join(layout.names)}){_remedy(names, layout)}")


def _remedy(names: Collection[str], layout: Layout) -> str:
    if layout is not PEFT and PEFT.choose(names):
        return ", but an adapter of peft: convert it as lora, with --base"
    if layout is PEFT and TRANSFORMERS.choose(names):
        return ", but a model: give the adapter's folder"
    if others := sorted(name for name in names if name.endswith(_SUFFIXES)):
        return f": {others[0]} is not a name that {layout.kind} has"
    return ""

"""NExT-GPT as a Python object: prompts with media in, text with media out."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, Unpack

from jax.sharding import Mesh

from nextgpt_jax.config import ExperimentConfig, GenerationDefaults, MeshConfig
from nextgpt_jax.errors import UserError
from nextgpt_jax.inference import types as engine_types
from nextgpt_jax.inference.engine import Engine
from nextgpt_jax.inference.requests import make_request
from nextgpt_jax.mesh import make_mesh
from nextgpt_jax.models.nextgpt import NExTGPTConfig
from nextgpt_jax.pipeline import saved
from nextgpt_jax.pipeline.types import GenerationConfig, MediaInput, Request, RequestOptions, Response, StreamEvent
from nextgpt_jax.prompts import Turn
from nextgpt_jax.weights.load import load_trained
from nextgpt_jax.weights.run_steps import LATEST

OnStep = Callable[[int, int], None]


class NExTGPT:
    """A loaded model. Made by `from_pretrained`; calls share its weights and keep no state.

    >>> import nextgpt_jax as ng
    >>> model = ng.NExTGPT.from_pretrained("keypad")
    >>> reply = model("draw a seven")
    >>> reply.text
    'Here is a handwritten seven.'
    >>> reply.images[0].size
    (32, 32)
    """

    def __init__(self, engine: Engine, source: saved.Source):
        self._engine, self._source = engine, source

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        config: str | ExperimentConfig | None = None,
        mesh: Mesh | Mapping[str, int] | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        revision: str = "",
        step: str | int = LATEST,
        ema: bool | None = None,
    ) -> Self:
        """Loads a model.

        Args:
          name_or_path: a config that has trained weights ("keypad", or a config file), a folder that `save_pretrained`
            wrote, the workdir of a training run, or the id of a Hugging Face Hub repository with such a folder.
          config: for a workdir, the config that it was trained with, if it is of a version that did not record it.
          mesh: the devices to use, as a mesh or as axis sizes such as {"fsdp": 4, "tensor": 2}; None: one device, or
            what the config says.
          dtype: "float32" or "bfloat16" for frozen weights and activations; None: bfloat16 on accelerators, float32 on
            CPUs.
          quantization: "int8" or "nf4" for the language model's kernels; None: what the config says.
          revision: of a Hub repository.
          step: of a workdir, the checkpoint: its number, "latest", or "best", that with the lowest loss.
          ema: of a workdir, whether to load the moving average of the weights; None: if the run makes one.

        Raises:
          UserError: there is no such model, or a file is missing or does not fit.
        """
        source = saved.find(name_or_path, config=config, revision=revision, step=step, ema=ema)
        experiment = source.config
        model = experiment.model
        model = dataclasses.replace(model, dtype=dtype or model.dtype, quantize=quantization or model.quantize)
        if mesh is None or isinstance(mesh, Mapping):
            mesh = make_mesh(MeshConfig(**mesh) if mesh else experiment.mesh)
        used = mesh if mesh.size > 1 else None
        system = load_trained(model, source.workdir, step=source.step, ema=source.ema, mesh=used)
        return cls(Engine(system, experiment.generation), source)

    @property
    def config(self) -> NExTGPTConfig:
        """The sizes of all parts."""
        return self._engine.config

    @property
    def defaults(self) -> GenerationDefaults:
        """The options of an answer that a request leaves open, and the sizes of generated media."""
        return self._engine.defaults

    @property
    def input_modalities(self) -> tuple[str, ...]:
        """The modalities that the model reads, text aside."""
        return self.config.input_modalities

    @property
    def output_modalities(self) -> tuple[str, ...]:
        """The modalities that the model generates, text aside."""
        return self.config.output_modalities

    def __call__(self, prompt: str, **options: Unpack[RequestOptions]) -> Response:
        """Answers one prompt. Options are the fields of `Request`: images=, audios=, output_modalities=, ...

        Raises:
          UserError: a file cannot be read, an option is out of range, or the request does not fit the model.
        """
        return self.generate_batch([Request(prompt, **options)])[0]

    def generate_batch(self, requests: Sequence[Request], *, on_step: OnStep | None = None) -> list[Response]:
        """Answers requests together; an answer does not depend on the others.

        Args:
          on_step: called as on_step(done, all) after each denoising step, for progress bars.

        Raises:
          UserError: as a call.
        """
        return [_response(found) for found in self._engine.generate([self._prepared(r) for r in requests], on_step)]

    def edit(
        self,
        prompt: str,
        *,
        image: MediaInput | None = None,
        video: MediaInput | None = None,
        audio: MediaInput | None = None,
        strength: float = 0.6,
        inversion: bool = False,
        generation_config: GenerationConfig | None = None,
    ) -> Response:
        """Edits a medium as a prompt says: generates one that begins from it instead of from noise.

        >>> import nextgpt_jax as ng
        >>> model = ng.NExTGPT.from_pretrained("keypad")
        >>> seven = model("draw a seven").images[0]
        >>> nine = model.edit("make it a nine", image=seven, strength=0.8)
        >>> nine.text, nine.images[0].size
        ('Here is a handwritten nine.', (32, 32))

        The result has the size of generated media (`defaults`): images and frames are scaled to cover it and cut around
        their center, videos and sounds are cut or prolonged.

        Args:
          image, video, audio: the medium, exactly one: a file or its contents (see `MediaInput`).
          strength: in (0, 1], the share of the denoising steps that are taken: how much may change.
          inversion: begin from the noise that DDIM, run backwards, finds for the medium, not from new noise.
          generation_config: options of the answer.

        Raises:
          UserError: not exactly one medium is given, it cannot be read, or an option is out of range.
        """
        given = {
            name: [medium]
            for name, medium in {"image": image, "video": video, "audio": audio}.items()
            if medium is not None
        }
        if len(given) != 1:
            raise UserError(f"give one of image, video and audio to edit, got {' and '.join(given) or 'none'}")
        (name,) = given
        options = dataclasses.asdict(generation_config or GenerationConfig())
        options |= {"edit": name, "strength": strength, "inversion": inversion}
        prepared = make_request(prompt, given, options, self.config, self.defaults)
        return _response(self._engine.generate([prepared])[0])

    def stream(self, prompt: str, **options: Unpack[RequestOptions]) -> Iterator[StreamEvent]:
        """Answers one prompt piece by piece: text while it is decoded, then every medium when it is finished.

        >>> import nextgpt_jax as ng
        >>> model = ng.NExTGPT.from_pretrained("keypad")
        >>> "".join(event.text for event in model.stream("what is two plus three?"))
        'Two plus three is five.'

        Raises:
          UserError: as a call, before the first event.
        """
        return self._events(self._prepared(Request(prompt, **options)))

    def chat(self, generation_config: GenerationConfig | None = None) -> "Chat":
        """Begins a conversation, whose options are `generation_config` where a turn gives none."""
        return Chat(self, generation_config or GenerationConfig())

    def warm_up(self, **sizes: Any) -> None:
        """Compiles the programs before the first request. Arguments as `Engine.warm_up`."""
        self._engine.warm_up(**sizes)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the model to a new folder: every part in its published layout, the trained weights, and nextgpt.json.

        Raises:
          UserError: the folder is not empty, or cannot be written.
        """
        saved.save(self._source, pathlib.Path(folder))

    def _events(self, request: engine_types.Request) -> Iterator[StreamEvent]:
        for event in self._engine.stream(request):
            found = None if event.response is None else _response(event.response)
            yield StreamEvent(event.text, event.media, found)

    def _prepared(self, request: Request, history: Sequence[Turn] = ()) -> engine_types.Request:
        options = dataclasses.asdict(request.generation_config)
        wanted = request.output_modalities
        options["modality"] = "auto" if wanted is None else ",".join(wanted) or "text"
        return make_request(request.prompt, request.by_modality(), options, self.config, self.defaults, history)


def _response(found: engine_types.Response) -> Response:
    return Response(found.media, found.text, found.tokens)


class Chat:
    """A conversation: every turn sees those before it, media included.

    >>> import nextgpt_jax as ng
    >>> chat = ng.NExTGPT.from_pretrained("keypad").chat()
    >>> drawn = chat.send("draw a seven")
    >>> len(drawn.images), len(chat)
    (1, 1)
    """

    def __init__(self, model: NExTGPT, generation_config: GenerationConfig):
        self._model, self._config = model, generation_config
        self._turns: tuple[Turn, ...] = ()

    def __len__(self) -> int:
        """The number of turns so far."""
        return len(self._turns)

    def send(self, prompt: str, **options: Unpack[RequestOptions]) -> Response:
        """Answers the next turn. Arguments and errors as `NExTGPT.__call__`; a refused turn leaves no trace."""
        request = Request(prompt, **({"generation_config": self._config} | options))
        prepared = self._model._prepared(request, self._turns)
        (found,) = self._model._engine.generate([prepared])
        self._turns = (*self._turns, Turn(prepared.turns[-1].human, found.segments))
        return _response(found)

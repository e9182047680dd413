"""Answers batches of requests: encodes their media, decodes text, samples the media that it asks for.

All shapes are rounded up to a few sizes, and everything that a request can choose is traced, so a warm engine compiles
nothing for a request of a known size.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nextgpt_jax.config import GenerationDefaults
from nextgpt_jax.generation.state import DecodeOutput, DecodeState, StaticDecodeConfig
from nextgpt_jax.inference import programs
from nextgpt_jax.inference.batching import BatchShape, pad_rows, prompt_batch, round_up_to_power_of_two
from nextgpt_jax.inference.media_sampler import MediaSampler, OnStep
from nextgpt_jax.inference.responses import ResponseParser, TextStream, known_ids
from nextgpt_jax.inference.slots import Rows
from nextgpt_jax.inference.types import Request, Response, StreamEvent
from nextgpt_jax.inference.validation import check_conversation, check_defaults, check_options
from nextgpt_jax.mesh import data_parallel_mesh
from nextgpt_jax.modalities import MODALITIES
from nextgpt_jax.models.diffusion.blocks import chunk_feed_forward
from nextgpt_jax.models.partitioning import move_to_data_parallel
from nextgpt_jax.models.stacking import unstack
from nextgpt_jax.prompts import Input
from nextgpt_jax.sharding import round_up_to_shards
from nextgpt_jax.templates import TokenizedConversation, tokenize_conversation
from nextgpt_jax.weights.load import LoadedModel, runs_unstacked

_ENCODE_BATCH = 32  # inputs of a modality that are encoded together
_STREAM_STEPS = 4  # decoding steps between two looks at the text
_ALL_STEPS = np.iinfo(np.int32).max


class Engine:
    """Answers requests with a loaded model.

    On a mesh, the rows of a batch are split over its devices. Calls share the weights and keep no state.

    Attributes:
      config: the model's config.
      defaults: settings that requests can override, and sizes of generated media.
      media_sampler: samples media from the hidden states at signal tokens.
      parser: makes text of token ids.
      stop_sequences: token ids that end a response.
    """

    def __init__(self, system: LoadedModel, defaults: GenerationDefaults, *, keep_stacked: bool = False):
        """
        Args:
          keep_stacked: leave stacked layers of the language model as they are: it takes no memory, and decoding is
            slower where unstacked ones are faster (see `runs_unstacked`).

        Raises:
          UserError: `defaults` do not fit the model.
        """
        self.config, self.defaults = system.model.config, defaults
        self._mesh = system.mesh
        self._data_parallel_mesh = system.mesh and data_parallel_mesh(system.mesh)  # for encoders and decoders
        check_defaults(defaults, self.config.output_modalities)
        model = nnx.merge(*nnx.split(system.model))  # a module of its own: the caller's is not changed
        if self._mesh:
            move_to_data_parallel(model, self._mesh)
        if not keep_stacked and runs_unstacked(self._mesh) and not isinstance(model.llm.layers, nnx.List):
            model.llm.layers = unstack(model.llm.layers)
        for name, decoder in model.decoders.items():
            if chunk := getattr(getattr(defaults, name), "feed_forward_chunk", 0):
                chunk_feed_forward(decoder.unet, chunk)
        self._encoding_model = programs.part(model, encoders=True)
        self._text_model = programs.part(model)
        self._dtype = model.llm.embed_tokens.embedding[...].dtype
        self.media_sampler = MediaSampler(
            {name: programs.part(model, decoder=name) for name in model.decoders},
            self.config,
            system.caption_tokenizers,
            defaults,
            self._dtype,
            self._data_parallel_mesh,
        )
        self._tokenizer, self._template = system.tokenizer, system.template
        self.parser = ResponseParser(system.tokenizer, self.config.vocabulary)
        self.stop_sequences = system.stop_sequences

    def validate(self, request: Request) -> TokenizedConversation:
        """Tokenizes a request and checks that it can be answered.

        Raises:
          UserError: the prompt does not fit the context, the model does not read an input, or an option is out of
            range.
        """
        conversation = tokenize_conversation(
            request.turns, self._tokenizer, self.config.vocabulary, self._template, self.config.num_embeddings
        )
        check_options(request, self.config, self.defaults)
        check_conversation(conversation, request, self.config)
        return conversation

    def generate(self, requests: Sequence[Request], on_step: OnStep | None = None) -> list[Response]:
        """Answers requests together.

        Args:
          on_step: called with (steps done, all steps) after each denoising step.

        Raises:
          UserError: a request cannot be answered (see `validate`).
        """
        conversations = [self.validate(request) for request in requests]
        output = self._decode(requests, conversations)
        responses = [self._response(output, row, of) for row, of in enumerate(conversations)]
        media = {(i, g): medium for i, g, medium in self.media_sampler.sample(requests, output, on_step)}
        for i, g in sorted(media):
            responses[i].media.append(media[i, g])
        return responses

    def stream(self, request: Request, on_step: OnStep | None = None) -> Iterator[StreamEvent]:
        """Answers one request in parts: text while it is decoded, then each medium, then the complete response.

        The response is that of `generate`, and so are the compiled programs.

        Args:
          on_step: called with (steps done, all steps) after each denoising step.

        Raises:
          UserError: the request cannot be answered (see `validate`); before the first event.
        """
        return self._stream(request, self.validate(request), on_step)

    def _response(self, output: DecodeOutput, row: int, conversation: TokenizedConversation) -> Response:
        """The response of a row, without its media."""
        ids = output.tokens[row, : output.length[row]].tolist()
        return self.parser.response(ids, len(conversation.ids), bool(output.stopped[row]))

    def _stream(
        self, request: Request, conversation: TokenizedConversation, on_step: OnStep | None
    ) -> Iterator[StreamEvent]:
        text, done = TextStream(self.parser, self.stop_sequences), False
        state, config = self._prefill([request], [conversation])
        state, progress = self._advance(state, config, _STREAM_STEPS)
        while not done:
            state, following = self._advance(state, config, _STREAM_STEPS)  # runs while the text is looked at
            ids, done = known_ids(jax.device_get(progress), 0)
            if delta := text.advance(ids, done):
                yield StreamEvent(text=delta)
            progress = following
        output = jax.device_get(state.output())
        response, media = self._response(output, 0, conversation), {}
        for _, group, medium in self.media_sampler.sample([request], output, on_step):
            media[group] = medium
            while (position := len(response.media)) in media:  # in the order of the response
                response.media.append(media[position])
                yield StreamEvent(media=media[position])
        yield StreamEvent(response=response)

    def warm_up(
        self,
        *,
        rows: int = 1,
        prompt_tokens: Sequence[int] = (32, 48, 64),
        inputs: int = 1,
        max_new_tokens: int | None = None,
        input_modalities: Sequence[str] | None = None,
        output_modalities: Sequence[str] | None = None,
        edits: Sequence[str] = (),
    ) -> None:
        """Compiles the programs that answer and stream up to `rows` requests together, all in parallel.

        Compiled programs are kept in the compilation cache, if there is one. Samplers run one denoising step.

        Args:
          rows: requests, inputs to encode and media to sample in one batch (see generation.image.batch and others).
          prompt_tokens: lengths of prompts, rounded up like those of requests.
          inputs: largest number of inputs of a prompt.
          max_new_tokens: of an answer; None: the default.
          input_modalities: of the inputs; None: all that the model reads.
          output_modalities: of the generated media; None: all that the model has.
          edits: the modalities among them that are edited, too.
        """
        new = self.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens
        context = self.config.llm.max_position_embeddings
        tasks: list[Callable[[], object]] = [
            functools.partial(self.warm_up_encoder, name, rows)
            for name in (self.config.input_modalities if input_modalities is None else input_modalities)
        ]
        media = inputs * max(self.config.num_embeddings.values(), default=1)
        shapes = {n: BatchShape.rounded_up(rows, n, min(new, max(1, context - n)), media) for n in prompt_tokens}
        tasks += [functools.partial(self._warm_up_decoding, shape) for shape in dict.fromkeys(shapes.values())]
        for name in self.config.output_modalities if output_modalities is None else output_modalities:
            tasks.append(functools.partial(self.media_sampler.warm_up, name, rows))
            if name in edits:
                tasks.append(functools.partial(self.media_sampler.warm_up, name, rows, edits=True))
        with concurrent.futures.ThreadPoolExecutor(len(tasks) or 1) as pool:
            for task in [pool.submit(task) for task in tasks]:
                task.result()

    def rows(self, rows: int, *, context: int, max_new_tokens: int, kv_cache: str = "") -> Rows:
        """Free rows for requests that come and go (see `Rows`); on a mesh, a multiple of its data-parallel devices.

        Args:
          kv_cache: dtype of the cache: "int8", or "" for the model's.
        """
        return Rows(
            self._text_model,
            self._mesh,
            functools.partial(self._run_prefill, kv_cache=kv_cache),
            rows=round_up_to_shards(rows, self._mesh),
            context=context,
            max_new_tokens=max_new_tokens,
        )

    @functools.cached_property
    def widest_group(self) -> int:
        """The tokens of the longest signal group; 0 if there are no output modalities."""
        return max((len(self.config.vocabulary.signal_ids(n)) for n in self.config.output_modalities), default=0)

    def encode(self, inputs: Sequence[Input]) -> list[np.ndarray]:
        """The encoder embeddings [k, E], float32, of the inputs; those of a modality are computed together."""
        embeddings: dict[int, np.ndarray] = {}
        for name in dict.fromkeys(medium.modality for medium in inputs):
            indices = [i for i, medium in enumerate(inputs) if medium.modality == name]
            for start in range(0, len(indices), _ENCODE_BATCH):
                chosen = indices[start : start + _ENCODE_BATCH]
                embedded = self._encode_batch(name, [inputs[i].content for i in chosen], rows=len(chosen))
                embeddings |= zip(chosen, embedded, strict=False)
        return [embeddings[i] for i in range(len(inputs))]

    def warm_up_encoder(self, modality: str, rows: int) -> None:
        """Compiles the program that encodes so many media together."""
        self._encode_batch(modality, [], rows=rows)

    def num_embeddings(self, conversation: TokenizedConversation) -> int:
        """The embeddings of a conversation's inputs, by the encoder that has the most."""
        counts: dict[str, int] = {}
        for _, medium in conversation.inputs:
            encoder = MODALITIES[medium.modality].encoder
            counts[encoder] = counts.get(encoder, 0) + self.config.num_embeddings[medium.modality]
        return max(counts.values(), default=0)

    def _decode(self, requests: Sequence[Request], conversations: Sequence[TokenizedConversation]) -> DecodeOutput:
        """The complete responses of the requests, on the host."""
        state, config = self._prefill(requests, conversations)
        state, _ = self._advance(state, config, _ALL_STEPS)
        return jax.device_get(state.output())

    def _prefill(
        self, requests: Sequence[Request], conversations: Sequence[TokenizedConversation]
    ) -> tuple[DecodeState, StaticDecodeConfig]:
        embeddings = self.encode([medium for c in conversations for _, medium in c.inputs])
        context = self.config.llm.max_position_embeddings
        lengths = [len(c.ids) for c in conversations]
        shape = BatchShape.rounded_up(
            len(requests),
            max(lengths),
            max(min(r.max_new_tokens, context - n) for r, n in zip(requests, lengths, strict=True)),
            max(map(self.num_embeddings, conversations)),
        )
        return self._run_prefill(shape, requests, conversations, embeddings)

    def _run_prefill(
        self,
        shape: BatchShape,
        requests: Sequence[Request] = (),
        conversations: Sequence[TokenizedConversation] = (),
        embeddings: Sequence[np.ndarray] = (),
        slots: int | None = None,
        kv_cache: str = "",
    ) -> tuple[DecodeState, StaticDecodeConfig]:
        modalities = self.config.output_modalities
        batch = prompt_batch(
            shape._replace(rows=round_up_to_shards(shape.rows, self._mesh)),
            requests,
            conversations,
            embeddings,
            context=self.config.llm.max_position_embeddings,
            embedding_dims=self.config.embedding_dims,
            modalities=modalities,
        )
        config = StaticDecodeConfig(
            stop_sequences=self.stop_sequences,
            signal_groups=tuple(map(self.config.vocabulary.signal_ids, modalities)),
            base_vocab_size=self.config.vocabulary.base_size,
            max_new_tokens=shape.new_tokens,
            max_groups=self.defaults.max_media,
            kv_cache=kv_cache,
        )
        with programs.use_mesh(self._mesh):
            return programs.prefill(self._text_model, *batch, config=config, slots=slots), config

    def _advance(
        self, state: DecodeState, config: StaticDecodeConfig, max_steps: int
    ) -> tuple[DecodeState, programs.Progress]:
        with programs.use_mesh(self._mesh):
            return programs.decode(self._text_model, state, np.int32(max_steps), config=config)

    def _warm_up_decoding(self, shape: BatchShape) -> None:
        self._advance(*self._run_prefill(shape), 0)

    def _encode_batch(self, name: str, contents: Sequence[np.ndarray], *, rows: int) -> np.ndarray:
        """The embeddings of media of a modality, and of zeros that fill the batch."""
        rows = round_up_to_shards(round_up_to_power_of_two(min(rows, _ENCODE_BATCH)), self._data_parallel_mesh)
        batch = pad_rows(contents, rows, np.zeros(self.config.input_encoders[name].input_shape(name)), np.float32)
        with programs.use_mesh(self._data_parallel_mesh):
            embeddings = programs.encode_media(self._encoding_model, jnp.asarray(batch, self._dtype), modality=name)
        return np.asarray(embeddings, np.float32)

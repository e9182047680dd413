"""Options, state and result of decoding.

Legend of shapes: B rows of the batch, P padded prompt length, N generated tokens at most, S cache slots, M output
modalities, G signal groups of a row at most, W tokens of the longest group, D hidden width.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

AnyArray = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class StaticDecodeConfig:
    """Compile-time settings; hashable, so that it can be a static argument of `jax.jit`.

    Attributes:
      stop_sequences: token ids that end a response. They are not part of it.
      signal_groups: the signal token ids of each output modality: consecutive, and always emitted as a whole. Their
        order is the order of the modalities in `SamplingParams` and `DecodeState`.
      base_vocab_size: ids from here on are sampled only as the first token of an allowed signal group.
      max_new_tokens: N. Rows can have lower limits.
      max_groups: G.
      attended: slots of the cache that are looked at; no row may need more. None: all.
      kv_cache: dtype of the cache: "int8", or "" for that of the embeddings.
    """

    stop_sequences: tuple[tuple[int, ...], ...]
    signal_groups: tuple[tuple[int, ...], ...]
    base_vocab_size: int
    max_new_tokens: int = 128
    max_groups: int = 4
    attended: int | None = None
    kv_cache: str = ""

    @property
    def group_width(self) -> int:
        """W: the length of the longest signal group, at least 1."""
        return max([1, *map(len, self.signal_groups)])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SamplingParams:
    """Options of each row. They are traced: other values do not recompile anything.

    Attributes:
      temperature: 0 takes the most likely token.
      top_k: sample from the k most likely tokens; 0 turns it off.
      top_p: sample from the smallest set of tokens with at least this probability; 1 turns it off.
      seed: a row's random numbers depend on its seed and on the number of its tokens only.
      max_new_tokens: limit of generated tokens, signal tokens included; at most N.
      allowed_modalities: the modalities that the row may emit.
      forced_modalities: the modalities that the row has to emit at least once; a subset of the allowed ones.
    """

    temperature: Float[AnyArray, " b"]
    top_k: Int[AnyArray, " b"]
    top_p: Float[AnyArray, " b"]
    seed: Int[AnyArray, " b"]
    max_new_tokens: Int[AnyArray, " b"]
    allowed_modalities: Bool[AnyArray, "b m"]
    forced_modalities: Bool[AnyArray, "b m"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DecodeOutput:
    """Generated tokens and the hidden states of their signal groups.

    Attributes:
      tokens: `tokens[i, : length[i]]` is the response of row i, without its stop sequence.
      length: number of tokens of each response.
      stopped: it ended with a stop sequence, not at its limit.
      num_groups: number of signal groups in each response.
      group_modality: for each group, the index of its modality in `StaticDecodeConfig.signal_groups`; -1 if unused.
      group_hidden: the hidden states at the tokens of each group, padded to W with arbitrary values.
    """

    tokens: Int[AnyArray, "b n"]
    length: Int[AnyArray, " b"]
    stopped: Bool[AnyArray, " b"]
    num_groups: Int[AnyArray, " b"]
    group_modality: Int[AnyArray, "b g"]
    group_hidden: Float[AnyArray, "b g w d"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DecodeState:
    """A batch in the middle of decoding: everything that the next step needs, apart from the model.

    Rows are independent: a row depends on no other row, nor on when it joined the batch. A token's slot in the cache is
    its position in its row, so the right padding of a prompt is overwritten by the first generated tokens.

    Attributes:
      cache: keys and values "k" and "v", each [layers, B, S, heads, head_dim], or a list of [B, S, heads, head_dim] for
        each layer; in int8 with "k_scale" and "v_scale", [..., B, S, heads, 1].
      params: the options of the rows.
      prompt_lengths: tokens of each prompt, without padding.
      tokens: the tokens fed to the model after the prompt; `tokens[i, : num_tokens[i]]` are valid.
      num_tokens: number of those tokens; a row's next position is prompt_lengths + num_tokens.
      next_token: chosen, but not fed yet. Of no meaning where done.
      done: the row is complete: it met a stop sequence or its limit. It no longer changes.
      stopped: it met a stop sequence.
      length: number of tokens of the response, without the stop sequence; 0 until done.
      num_groups: signal groups fed so far.
      group_modality: for each group, the index of its modality in `StaticDecodeConfig.signal_groups`; -1 if unused.
      group_hidden: the hidden states at the tokens of each group, padded to W with arbitrary values.
    """

    cache: dict[str, Any]
    params: SamplingParams
    prompt_lengths: Int[AnyArray, " b"]
    tokens: Int[Array, "b n"]
    num_tokens: Int[Array, " b"]
    next_token: Int[Array, " b"]
    done: Bool[Array, " b"]
    stopped: Bool[Array, " b"]
    length: Int[Array, " b"]
    num_groups: Int[Array, " b"]
    group_modality: Int[Array, "b g"]
    group_hidden: Float[Array, "b g w d"]

    @property
    def num_slots(self) -> int:
        """S."""
        return jax.tree.leaves(self.cache)[0].shape[-3]

    def output(self) -> DecodeOutput:
        """The responses; valid for rows that are done."""
        names = (field.name for field in dataclasses.fields(DecodeOutput))
        return DecodeOutput(*(getattr(self, name) for name in names))


def insert_rows(state: DecodeState, rows: Int[AnyArray, " r"], new: DecodeState) -> DecodeState:
    """`state` with its rows at the indices `rows` replaced by all rows of `new`.

    A server admits requests this way: it prefills them by themselves, with as many cache slots as `state` has, and puts
    them in the place of rows that are done. Rows with an index out of range are dropped.
    """

    def insert(batch_axis: int, old: Array, new: Array) -> Array:
        return old.at[(slice(None),) * batch_axis + (rows,)].set(new, mode="drop")

    cache = jax.tree.map(lambda old, new: insert(old.ndim - 4, old, new), state.cache, new.cache)
    others = (dataclasses.replace(s, cache={}) for s in (state, new))
    return dataclasses.replace(jax.tree.map(lambda old, new: insert(0, old, new), *others), cache=cache)

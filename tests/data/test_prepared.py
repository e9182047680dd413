"""Records of prepared data: written and read back, and refused where they are malformed."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextgpt_jax.data import prepared
from nextgpt_jax.data.prepared import Embedded, Manifest, Precomputed, PreparedRecords
from nextgpt_jax.errors import UserError
from nextgpt_jax.modalities import Vocabulary
from nextgpt_jax.prompts import Input, Output, Turn
from nextgpt_jax.templates import tokenize_conversation

MANIFEST = Manifest(
    task="conversation",
    dtype="float32",
    media={"image": Embedded((1, 3), "w", [1]), "audio": Embedded((2, 2), "w", [1])},
    captions={"image": Embedded((2, 2), "w", "t"), "audio": Embedded((1, 4), "w", "t")},
    layout="some",
    shards=[("shard.array_record", 1, 65536)],
    inputs={"image": 2, "audio": 2},
    outputs={"image": 2, "audio": 2},
)
MEDIA = {name: st.builds(Input, st.just(name), st.just(None)) for name in MANIFEST.media}
MADE = st.builds(Output, st.sampled_from(["image", "audio"]), st.text(max_size=4))
TURNS = st.lists(
    st.builds(
        Turn,
        st.lists(st.text(max_size=4) | st.one_of(*MEDIA.values()), max_size=4).map(tuple),
        st.none() | st.lists(st.text(max_size=4) | MADE, max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=3,
)


class Characters:
    """One id per character."""

    bos_token_id = 1

    def encode(self, text, add_special_tokens):
        return [ord(c) % 100 for c in text]


def record(turns) -> tuple[bytes, list[np.ndarray]]:
    """A record of turns with random embeddings, and these."""
    rng = np.random.default_rng(0)
    segments = [s for turn in turns for s in (*turn.human, *(turn.assistant or ()))]
    inputs = [s for s in segments if isinstance(s, Input)]
    shapes = [MANIFEST.media[s.modality].shape for s in inputs]
    shapes += [MANIFEST.captions[s.modality].shape for s in segments if isinstance(s, Output)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    names = [f"{i:064x}" for i in range(len(inputs))]
    return prepared.encode(tuple(turns), tokenize(turns), names, arrays), arrays


def tokenize(turns):
    return tokenize_conversation(turns, Characters(), Vocabulary(200), num_embeddings={"audio": 2})


@settings(max_examples=30)
@given(TURNS)
def test_records_hold_conversations_ids_and_embeddings(turns):
    content, arrays = record(turns)
    found, tokenized = prepared.decode(content, MANIFEST), tokenize(turns)
    assert [(turn.human, turn.assistant) for turn in _plain(found)] == [(t.human, t.assistant) for t in _plain(turns)]
    assert found.tokenized.ids.tolist() == tokenized.ids and found.tokenized.loss.tolist() == tokenized.loss
    media = [*found.tokenized.inputs, *found.tokenized.outputs]
    assert [at for at, _ in media] == [at for at, _ in (*tokenized.inputs, *tokenized.outputs)]
    for (_, medium), array in zip(media, arrays, strict=True):
        given = medium.content.embeddings if isinstance(medium, Input) else medium.embedding
        np.testing.assert_array_equal(given, array)


def _plain(turns):
    def side(segments):
        return segments and tuple(Input(s.modality, None) if isinstance(s, Input) else s for s in segments)

    return [Turn(side(turn.human), side(turn.assistant)) for turn in turns]


@given(st.data())
def test_damaged_records_are_refused(data):
    """Never another error, and never a conversation without an embedding."""
    turns = [Turn((Input("image", None), "a"), ("b", Output("audio", "c")))]
    content = bytearray(record(turns)[0])
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    try:
        found = prepared.decode(bytes(content), MANIFEST)
    except UserError:
        return
    inputs = [s for turn in found for s in turn.human if isinstance(s, Input)]
    assert all(isinstance(s.content, Precomputed) for s in inputs)


def test_manifests_are_checked(tmp_path):
    row = {"shape": [1, 3], "weights": "w", "settings": [1]}
    good = {
        "format": 1, "task": "conversation", "dtype": "float32", "media": {"image": row}, "captions": {}, "layout": "x",
        "shards": [{"name": "shard.array_record", "samples": 1, "bytes": 4}], "inputs": {"image": 1}, "outputs": {},
    }  # fmt: skip
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(good))
    assert Manifest.read(tmp_path).media["image"].shape == (1, 3)
    with pytest.raises(UserError, match="shard.array_record is missing: run nextgpt prepare again"):
        PreparedRecords(str(tmp_path))
    (tmp_path / "shard.array_record").write_bytes(b"")
    with pytest.raises(UserError, match="damaged: it has 0 bytes, not 4"):
        PreparedRecords(str(file))
    for change, match in (
        ({"format": 2}, "has format 2, and this release reads 1"),
        ({"dtype": "int8"}, "is no manifest of prepared data"),
        ({"shards": 3}, "is no manifest"),
        ({"media": {"image": row | {"shape": [0, 3]}}}, "is no manifest"),
        ({"media": {"smell": row}}, "is no manifest"),
        ({"inputs": {"smell": 1}}, "is no manifest"),
    ):
        file.write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=match):
            Manifest.read(tmp_path)
    file.write_text("[]")
    with pytest.raises(UserError, match="is no manifest"):
        Manifest.read(tmp_path)

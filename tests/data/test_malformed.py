"""Random records and media, malformed or not, from files to batches: all are trained or written down."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextgpt_jax.config import DataConfig
from nextgpt_jax.data.formats import Formats
from nextgpt_jax.data.pipeline import batches
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.data.survey import survey
from nextgpt_jax.errors import UserError
from nextgpt_jax.media import write_wav
from nextgpt_jax.training.skipped import SkipLog
from tests.data.published import talk
from tests.data.test_examples import builder

NAMES = ["good.png", "good.wav", "cut.png", "cut.wav", "noise.png", "noise.mp4", "empty.wav", "folder.png", "none.png"]
FIELDS = sorted({name for row in Formats().values() for name in (*row.known, *row.unused)})


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with those of NAMES that there are."""
    folder, picture = tmp_path_factory.mktemp("media"), io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(picture, "png")
    write_wav(folder / "good.wav", rng.uniform(-1, 1, 1000).astype(np.float32), 8000)
    (folder / "good.png").write_bytes(picture.getvalue())
    (folder / "cut.png").write_bytes(picture.getvalue()[:100])
    (folder / "cut.wav").write_bytes((folder / "good.wav").read_bytes()[:30])
    (folder / "noise.png").write_bytes(rng.bytes(200))
    (folder / "noise.mp4").write_bytes(rng.bytes(200))
    (folder / "empty.wav").touch()
    (folder / "folder.png").mkdir()
    return folder


def _record(kind, name, texts, fields):
    modality = {"png": "image", "wav": "audio", "mp4": "video"}[name[-3:]]
    return {
        "pair": {f"{modality}_name": name, "caption": texts[0]},
        "talk": {"conversations": talk(f"<{modality}>{texts[0]}", texts[1]), f"input_{modality}s": [name]},
        "two": {"image": [name, "good.png"], "conversations": talk("<image><image>", texts[1])},
        "fields": fields,
        "other": texts[0],
    }[kind]


LEAVES = st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["human", "good.png", "<image>"])
RECORDS = st.builds(
    _record,
    st.sampled_from(["pair", "talk", "two", "talk", "fields", "other"]),
    st.sampled_from(["good.png", "good.wav", *NAMES]),
    st.tuples(st.text(max_size=4), st.text(max_size=4)),
    st.dictionaries(st.sampled_from(FIELDS), LEAVES | st.lists(LEAVES, max_size=2), max_size=3),
)


@settings(max_examples=40)
@given(
    records=st.lists(RECORDS, min_size=1, max_size=6),
    lines=st.booleans(),
    damage=st.sampled_from(["", "", '{"caption": ', "\x00"]),
    task=st.sampled_from(["captioning", "conversation"]),
    size=st.sampled_from([1, 1, 3]),
)
def test_what_is_not_trained_is_written_down(media, records, lines, damage, task, size):
    """Never a crash, and no example is empty that is not in the log; of one sample a batch, all records are counted."""
    path = media / ("records.jsonl" if lines else "records.json")
    texts = [*map(json.dumps, records), *[damage] * bool(damage)]
    path.write_text("\n".join(texts) if lines else f"[{','.join(texts)}]")
    try:
        samples = read_samples(task, str(path))
    except UserError as error:
        assert damage and not lines and "not valid JSON" in str(error)
        return
    found = survey(samples, 2)
    usable = found.usable(samples)
    assert len(samples) == len(texts) == len(usable) + len(found.problems)
    log = SkipLog(media / "skipped.jsonl", samples.counts(), 1.0)
    (media / "skipped.jsonl").unlink(missing_ok=True)
    log.start(found.problems, 0)
    trained = skipped = 0
    if len(usable):
        count = -(-len(usable) // size)
        config = DataConfig(batch_size=size, num_workers=1)
        made = batches(usable, builder(usable, max_length=160), config, 0, range(count), on_problem=log.add)
        for number, batch in enumerate(made):
            problems = log.settle(number, number + 1)
            filled = (batch["lengths"] > 0) & batch["loss_mask"].any(1)
            assert (~filled).sum() == len(problems) and all(problem.reason for problem in problems)
            assert not batch["tokens"][~filled].any()
            trained, skipped = trained + int(filled.sum()), skipped + len(problems)
    log = (media / "skipped.jsonl").read_text().splitlines() if found.problems or skipped else []
    assert len(log) == len(found.problems) + skipped
    if size == 1:
        assert trained + len(log) == len(samples)

"""Dataset files to conversations."""

import json

import pytest

from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.data.survey import survey
from nextgpt_jax.errors import UserError
from nextgpt_jax.prompts import Input, Output, Turn
from tests.data.test_examples import write

TALK = [{"from": "human", "value": "draw"}, {"from": "gpt", "value": "<image>"}]


def read(task, path, media_root=""):
    return list(read_samples(task, path, media_root))


def test_captions_serve_two_stages(folder):
    path = write(folder / "c.json", [{"caption": "a dog", "image_name": "1.png", "id": "1"}])
    image = Input("image", folder / "1.png")
    assert read("captioning", path, str(folder)) == [(Turn((image, " generate a caption"), ("a dog",)),)]
    assert read("generation", path, str(folder)) == [(Turn(("a dog",), ("a dog", Output("image", "a dog"))),)]


def test_the_references_instruction_files(folder):
    """One input_image, or captions as a string, as its comprehension and generation files have them."""
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a dog"}]
    draw = [{"from": "human", "value": "draw a dog"}, {"from": "gpt", "value": "Sure thing! <image>"}]
    records = [
        {"input_image": "0.png", "conversations": talk},
        {
            "output_image": "x.jpg",
            "image_captions": "a dog",
            "image_caption_embeddings": "x.npy",
            "conversations": draw,
        },
    ]
    first, second = read("conversation", write(folder / "i.json", records), str(folder))
    assert first == (Turn((Input("image", folder / "0.png"), "\nWhat is it?"), ("a dog",)),)
    assert second == (Turn(("draw a dog",), ("Sure thing!", Output("image", "a dog"))),)


def test_media_go_to_their_turns(folder):
    conversations = [
        {"from": "human", "value": "<image> and <image>?"},
        {"from": "gpt", "value": "two. <image>"},
        {"from": "human", "value": "and <image>?"},
        {"from": "gpt", "value": "<image> three <image>"},
    ]
    record = {
        "conversations": conversations,
        "input_images": ["0.png", "1.png", "2.png"],
        "image_captions": ["a", "b", "c"],
    }
    (sample,) = read("conversation", write(folder / "i.json", [record]), str(folder))
    assert [s.content.name for t in sample for s in t.human if isinstance(s, Input)] == ["0.png", "1.png", "2.png"]
    assert sample[0].assistant == ("two.", Output("image", "a"))
    assert sample[1].assistant == ("three", Output("image", "b"), Output("image", "c"))


@pytest.mark.parametrize(
    "task, records, message",
    [
        ("captioning", {"caption": "a"}, "should be a list"),
        ("captioning", [], "should be a list"),
        (
            "captioning",
            [{"caption": "a", "image_name": "0.png"}, {"caption": "a"}],
            "record 1: lacks one of image_name, video_name",
        ),
        ("conversation", [{"conversations": [{"from": "gpt", "value": "hi"}]}], "record 0: turns should alternate"),
        (
            "conversation",
            [{"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]}],
            "record 0: the prompt has 1 <image> mark but 0 images",
        ),
        (
            "conversation",
            [{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "<image>"}]}],
            "record 0: no caption",
        ),
        ("conversation", [{"conversations": []}], "record 0: turns should alternate"),
        ("conversation", [{"conversations": TALK, "image_captions": [5]}], "record 0: image_caption should be a text"),
        ("conversation", [{"conversations": TALK, "image_caption": {"a": "b"}}], "image_caption should be a text"),
        (
            "conversation",
            [{"conversations": TALK, "image_caption": "a", "image_captions": ["a"]}],
            "record 0: has both image_caption and image_captions",
        ),
        ("conversation", [{"conversations": TALK, "input_imgs": ["0.png"]}], "'input_imgs'.*did you mean input_images"),
        ("conversation", [{"conversations": [TALK[0], {"from": "gpt", "value": "a"}], "image": "0.png"}], "mark where"),
        ("conversation", [{"conversations": [TALK[0], {"from": "gpt"}]}], "record 0: message 1: lacks value"),
        ("conversation", [{"conversations": [TALK[0], {**TALK[1], "weight": 0}]}], "message 1: unknown field 'weight'"),
        ("conversation", [{"conversations": [TALK[0], "hi"]}], "record 0: message 1: should be an object"),
        ("captioning", [{"caption": "a", "img": "0.png"}], "unknown field 'img'.*did you mean image"),
        ("captioning", [{"image_name": "0.png"}], "record 0: lacks caption"),
        ("captioning", [{"caption": None, "image_name": "0.png"}], "record 0: lacks caption"),
        ("captioning", [{"caption": "a", "image_name": 5}], "record 0: image_name is 5, not a text"),
        ("captioning", ["a"], "record 0: should be an object, got 'a'"),
        (
            "captioning",
            [{"caption": "\ud83d", "image_name": "0.png"}],
            "record 0: .*surrogate without its pair in caption",
        ),
    ],
)
def test_malformed_files(folder, task, records, message):
    with pytest.raises(UserError, match=message):
        read(task, write(folder / "bad.json", records), str(folder))


def test_media_without_placeholders_are_not_dropped(folder):
    talk = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "x"}]
    path = write(folder / "i.json", [{"conversations": talk, "input_image": "0.png"}])
    with pytest.raises(UserError, match="record 0: more image files or captions than <image> placeholders"):
        read("conversation", path, str(folder))


def test_a_missing_or_broken_file(folder):
    with pytest.raises(UserError, match="no such file"):
        read("captioning", str(folder / "none.json"), "")
    (folder / "broken.json").write_text("[{")
    with pytest.raises(UserError, match="not valid JSON"):
        read("captioning", str(folder / "broken.json"), "")


def test_several_files_are_mixed(folder):
    one = write(folder / "one.json", [{"caption": "a", "image_name": "1.png"}])
    two = write(folder / "two.json", [{"caption": "b", "audio_name": "x.wav"}])
    first, second = read("generation", f"{one},{two}", "")
    assert first[0].assistant[1] == Output("image", "a") and second[0].assistant[1] == Output("audio", "b")


def test_usable_samples_keep_their_media(folder):
    """Those with problems are left out, again and again."""
    records = [{"caption": str(i), "image_name": f"{i}.png"} for i in (3, 0, 4, 1)]
    samples = read_samples("captioning", write(folder / "c.json", [*records, {"caption": "x"}]))
    found = survey(samples, 8)
    column = found.kinds.index((Input, "image"))
    assert [problem.index for problem in found.problems] == [0, 2, 4]
    assert found.media[:, column].tolist() == [0, 1, 0, 1, 0] and found.media.sum() == 2
    kept = found.usable(samples)
    assert [sample[0].assistant for sample in kept] == [("0",), ("1",)] and kept.media[:, column].tolist() == [1, 1]
    (folder / "0.png").unlink()
    kept = survey(kept, 8).usable(kept)
    assert [sample[0].assistant for sample in kept] == [("1",)] and kept.where(0)[1] == "record 3"
    assert kept.media.shape == (1, len(found.kinds))


RECORDS = [{"caption": "a", "image_name": "1.png", "video_name": None}, {"caption": "b\u2028c", "audio_name": "x.wav"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["c.jsonl", "c.json", "c.ndjson"])
def test_json_lines_and_byte_order_marks(folder, name, encoding):
    """As datasets and pandas write them: null for absent columns; .json may hold lines."""
    listed = read("generation", write(folder / "list.json", RECORDS), "")
    lines = "\r\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
    (folder / name).write_text(f"\n{lines}\n\n", encoding=encoding)
    assert read("generation", str(folder / name), "") == listed
    (folder / name).write_text(json.dumps(RECORDS, indent=1), encoding=encoding)
    assert read("generation", str(folder / name), "") == listed


def test_null_is_an_absent_field(folder):
    record = {"conversations": TALK, "image_captions": ["a"], "input_image": None, "input_video": None, "url": None}
    del_null = {name: value for name, value in record.items() if value is not None}
    found = [read("conversation", write(folder / "i.json", [r]), "") for r in (record, del_null)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("c.jsonl", '{"caption": "a", "image_name": "0.png"}\n{"caption": ', "line 2: not valid JSON"),
        ("c.json", '{"caption": "a", "image_name": "0.png"}\n\n{"caption": "b"}', "line 3: lacks one of image_name"),
        ("c.jsonl", f'{{"caption": "a", "image_name": "0.png"}}\n{"9" * 5000}', "line 2: .*too many digits"),
        ("c.jsonl", '{"caption": "a", "image_name": "0.png"}\n{"caption": "\\udc00"}', "line 2: .*surrogate"),
        ("c.json", f"[{'[' * 5000}{']' * 5000}]", "nested more than 100 levels"),
        ("c.json", '{\n"images": []\n}', "should be a list of records, or JSON lines"),
        ("c.jsonl", "", "should be a list of records, or JSON lines"),
    ],
)
def test_malformed_lines(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read("captioning", str(folder / name), "")
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_the_references_other_fields_are_known(folder):
    talk = [
        {"from": "human", "value": "a", "input_modality": "text"},
        {"from": "gpt", "value": "<audio>", "caption": "a"},
    ]
    record = {"conversations": talk, "audio_captions": ["a"], "audio_caption_embeddings": ["1.npy"], "source_data": {}}
    assert read("conversation", write(folder / "i.json", [record]), "")
    records = [{"id": 1, "audio_id": 2, "audio_name": "2.wav", "caption": "a", "conversations": talk}]
    assert read("captioning", write(folder / "c.json", records), "")

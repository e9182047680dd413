"""Records in the formats that datasets are published in, and files of them with their media."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from nextgpt_jax.data.formats import TASKS
from nextgpt_jax.media import write_mp4, write_wav
from nextgpt_jax.prompts import Input, Output, Turn

COUNT = 5
_STAGES = {"captioning": "stage1", "generation": "stage2", "conversation": "stage3"}
_PAIRS = [(i, f"the number {i}") for i in range(COUNT)]


def talk(*texts, sender="from", value="value", people=("human", "gpt")):
    return [{sender: people[i % 2], value: text} for i, text in enumerate(texts)]


def chat(*texts, people=("user", "assistant")):
    return talk(*texts, sender="role", value="content", people=people)


def asked(path, modality="image"):
    return Input(modality, path)


def published(i):
    """A record of each format, and the conversation that its i-th is, by task; media are in the folder "data"."""
    image, video, audio = Path(f"data/{i}.jpg"), Path(f"data/{i}.mp4"), Path(f"data/{i}.wav")
    question, answer = f"what is {i}?", f"the number {i}"
    seen = (Turn((asked(image), f"\n{question}"), (answer,)),)
    described = {"captioning": (Turn((asked(image), " generate a caption"), (answer,)),),
                 "generation": (Turn((answer,), (answer, Output("image", answer))),)}  # fmt: skip
    drawn = {task: (Turn((question,), ("Sure.", Output("image", answer))),) for task in ("generation", "conversation")}
    read = {"captioning": seen, "conversation": seen}
    text = {"conversation": (Turn((question,), (answer,)),)}
    moving = (Turn((asked(video, "video"), f"\n{question}"), (answer,)),)
    return {
        "captions": ({"image_name": f"{i}.jpg", "caption": answer, "id": i, "video_name": None}, described),
        "hub": ({"image": f"{i}.jpg", "text": answer}, described),
        "comprehension": ({"input_image": f"{i}.jpg", "conversations": talk(f"<image>\n{question}", answer)}, read),
        "generation": ({"output_image": "x.jpg", "image_captions": answer, "image_caption_embeddings": "x.npy",
                        "conversations": talk(question, "Sure. <image>")}, drawn),
        "t2m, prepared, without a mark": (
            {"image_captions": [answer], "conversations": [
                {"from": "human", "value": question, "input_modality": "text"},
                {"from": "gpt", "value": "Sure.", "caption": answer, "output_modality": "image"}]}, drawn),
        "t2x": (
            {"source_data": {"audiocap_id": i}, "conversation": [
                {"from": "human", "value": question, "input_modality": "text"},
                {"from": "gpt", "value": "Sure.", "caption": answer, "output_modality": "image"}]}, drawn),
        "t2x, with a name": (
            {"mm_name": f"{i}.jpg", "conversation": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": "Sure.", "caption": answer, "output_modality": "image"}]}, drawn),
        "legacy llava": (
            {"image_name": f"{i}.jpg", "output_modality": "text", "conversation": [
                {"from": "human", "value": question, "input_modality": "image"},
                {"from": "gpt", "value": answer, "caption": "", "output_modality": "text"}]}, read),
        "legacy llava, not prepared": ({"image_name": f"{i}.jpg", "conversation": talk(question, answer)}, read),
        "legacy alpaca": (
            {"image_name": "00000000000", "output_modality": "text", "conversation": [
                {"from": "human", "value": question, "input_modality": "text"},
                {"from": "gpt", "value": answer, "caption": "", "output_modality": "text"}]}, text),
        "legacy videochat": ({"video_name": f"{i}.mp4", "conversation": talk(question, answer)},
                             {"captioning": moving, "conversation": moving}),
        "mosit": (
            {"image_list": [{"image_name": "mosit_i_0.jpg", "data_source": "mosit", "caption": answer},
                            {"image_name": f"{i}.jpg", "caption": "an input"}],
             "video_list": [], "audio_list": [], "conversation": talk(
                f"<Image>{i}.jpg</Image>\n{question}",
                "Sure. <image>what it shows</image><Image>mosit_i_0.jpg</Image> <Audio>lost.wav</Audio>")},
            {task: (Turn((asked(image), f"\n{question}"), ("Sure.", Output("image", answer))),) for task in TASKS}),
        "llava": ({"id": str(i), "image": f"{i}.jpg", "conversations": talk(f"<image>\n{question}", answer)}, read),
        "mix665k, text": ({"id": str(i), "model": "", "conversations": talk(question, answer)}, text),
        "llava, several images": (
            {"image": [f"{i}.jpg", f"{i}.jpg"], "conversations": talk("<image> or", "?", "<image>", "!")},
            {"conversation": (Turn((asked(image), " or"), ("?",)), Turn((asked(image),), ("!",)))}),
        "llava, a video": ({"video": f"{i}.mp4", "conversations": talk(f"<image>\n{question}", answer)},
                           {"captioning": moving, "conversation": moving}),
        "messages": (
            {"images": [f"{i}.jpg"], "messages": chat(f"<image>\n{question}", answer)}, read),
        "alpaca": ({"instruction": f"what is {i}", "input": "", "output": "x", "text": "all of it"},
                   {"conversation": (Turn((f"what is {i}",), ("x",)),)}),
        "alpaca, with input": ({"instruction": "add", "input": f"{i} and 1", "output": "x"},
                               {"conversation": (Turn((f"add\n{i} and 1",), ("x",)),)}),
        "videochat2": (
            {"video": f"{i}.mp4", "QA": [{"i": "Look.", "q": question, "a": answer}, {"q": "and?", "a": "no"}]},
            {"conversation": (Turn((asked(video, "video"), "\n", f"Look. {question}"), (answer,)),
                              Turn(("and?",), ("no",)))}),
        "audiocaps": ({"audiocap_id": str(i), "youtube_id": "abc", "start_time": "30", "caption": answer},
                      {"captioning": (Turn((asked(audio, "audio"), " generate a caption"), (answer,)),)}),
        "webvid": ({"videoid": str(i), "contentUrl": "x", "duration": "PT1S", "page_dir": "p", "name": answer},
                   {"captioning": (Turn((asked(video, "video"), " generate a caption"), (answer,)),)}),
        "cc3m": ({"caption": answer, "url": "http://x"},
                 {"captioning": (Turn((asked(Path(f"data/{i:09d}.jpg")), " generate a caption"), (answer,)),),
                  "generation": described["generation"]}),
    }  # fmt: skip


def write_tar(path, members):
    """A tar of (name, content) each."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_array_records(path, records):
    """An ArrayRecord file of JSON objects."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(json.dumps(record).encode())
    writer.close()


def write_all_formats(folder: Path) -> dict[str, tuple[str, str]]:
    """Writes five records of every format and kind of file, in the published layout, and their media: pictures of
    12 x 10, clips of 6 frames, sounds of half a second.

    Returns:
      The file and a stage that it serves, by the name of the format.
    """
    folder.mkdir(parents=True)
    _write_media(folder)
    written = {}
    for name in published(0):
        records = [published(i)[name][0] for i in range(COUNT)]
        stage = _STAGES[list(published(0)[name][1])[-1]]
        path = folder / f"{name.replace(', ', '_').replace(' ', '_')}.json"
        if name == "cc3m":
            path = path.with_suffix(".tsv")
            path.write_text("".join(f"{record['caption']}\t{record['url']}\n" for record in records))
        elif name in ("audiocaps", "webvid"):
            path = path.with_suffix(".csv")
            _write_csv(path, records)
        else:
            path.write_text(json.dumps(records))
        written[name] = str(path), stage
    for name, write in _OTHERS.items():
        path = folder / name
        write(path)
        written[name] = str(path), "stage1"
    return written


def _write_media(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "00000").mkdir()
    for i in range(COUNT):
        picture = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
        picture.save(folder / f"{i}.jpg")
        picture.save(folder / "00000" / f"{i:09d}.jpg")
        write_wav(folder / f"{i}.wav", rng.uniform(-1, 1, 4000).astype(np.float32), 8000)
        write_mp4(folder / f"{i}.mp4", rng.integers(0, 256, (6, 16, 16, 3), np.uint8), 4)


def _write_csv(path: Path, records: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, records[0].keys())
        rows.writeheader()
        rows.writerows(records)


def _coco(path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 10, "width": 12} for i, _ in _PAIRS]
    annotations = [{"id": 10 + i, "image_id": i, "caption": caption} for i, caption in _PAIRS]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))


def _lines(path: Path) -> None:
    path.write_text("".join(json.dumps(published(i)["captions"][0]) + "\n" for i, _ in _PAIRS))


def _webdataset(path: Path) -> None:
    members = []
    for i, caption in _PAIRS:
        other = json.dumps({"caption": caption, "url": "http://x", "status": "success"})
        picture = (path.parent / f"{i}.jpg").read_bytes()
        contents = {"jpg": picture, "txt": caption.encode(), "json": other.encode()}
        members += [(f"{i:09d}.{suffix}", content) for suffix, content in contents.items()]
    write_tar(path, members)


def _array_records(path: Path) -> None:
    write_array_records(path, [published(i)["captions"][0] for i, _ in _PAIRS])


def _table(folder: Path):
    import pyarrow

    images = [{"bytes": (folder / f"{i}.jpg").read_bytes(), "path": f"{i}.jpg"} for i, _ in _PAIRS]
    return pyarrow.table({"image": images, "text": [caption for _, caption in _PAIRS]})


def _parquet(path: Path) -> None:
    import pyarrow.parquet

    path.mkdir()
    pyarrow.parquet.write_table(_table(path.parent), path / "train-00000-of-00001.parquet")


def _saved(path: Path) -> None:
    """As save_to_disk of datasets writes it."""
    import pyarrow

    path.mkdir()
    table = _table(path.parent)
    with pyarrow.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as sink:
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (path / "state.json").write_text("{}")


_OTHERS = {
    "coco.json": _coco, "lines.jsonl": _lines, "00000.tar": _webdataset, "records.array_record": _array_records,
    "parquet": _parquet, "saved": _saved,
}  # fmt: skip

"""Copies of the datasets' layouts as they are published, with few samples and the smallest media."""

import csv
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nextgpt_jax import media
from nextgpt_jax.evaluation.tasks import mvbench

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_json(path: pathlib.Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: pathlib.Path, records: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_csv(path: pathlib.Path, rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def image(path: pathlib.Path, seed: int = 0, size: tuple[int, int] = (24, 32)) -> None:
    """A picture; its bytes are a PNG whatever its suffix, as readers look at the content."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    png = path.with_suffix(".png")
    media.write("image", png, pixels)
    png.rename(path)


def video(path: pathlib.Path, seed: int = 0, frames: int = 6, fps: float = 3.0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 16, 32, 3), np.uint8)
    media.write("video", path, media.Video(pixels, fps))


def sound(path: pathlib.Path, seed: int = 0, seconds: float = 0.6) -> None:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, int(16_000 * seconds)).astype(np.float32)
    media.write("audio", path, media.Audio(samples, 16_000))


def coco_captions(folder: pathlib.Path, n: int) -> None:
    """annotations/captions_val2014.json, val2014/"""
    images, annotations = [], []
    for i in range(n):
        name = f"COCO_val2014_{i + 1:012d}.jpg"
        images.append({"license": 3, "file_name": name, "height": 24, "width": 32, "id": i + 1, "coco_url": "http://"})
        image(folder / "val2014" / name, i)
        animal = ("cat", "dog", "elephant")[i % 3]
        captions = (f"The number {WORDS[i % 10]}.", f"An {animal} and a {WORDS[i % 10]}\n")
        annotations += [
            {"image_id": i + 1, "id": 100 * (i + 1) - k, "caption": text} for k, text in enumerate(captions)
        ]
    info = {"description": "", "version": "1.0"}
    content = {"info": info, "images": images, "licenses": [], "annotations": annotations[::-1]}
    write_json(folder / "annotations/captions_val2014.json", content)


def coco_instances(folder: pathlib.Path, n: int) -> None:
    """The same, and annotations/instances_val2014.json."""
    coco_captions(folder, n)
    names = ("cat", "dog", "elephant", "bird")
    categories = [{"supercategory": "animal", "id": 17 + i, "name": name} for i, name in enumerate(names)]
    categories.append({"supercategory": "person", "id": 1, "name": "person"})
    images = [{"id": i + 1, "file_name": f"COCO_val2014_{i + 1:012d}.jpg", "height": 24, "width": 32} for i in range(n)]
    annotations = []
    for i in range(n):
        box = {"segmentation": [[0.0, 0.0, 1.0, 1.0]], "iscrowd": 0, "image_id": i + 1, "bbox": [0, 0, 16.5, 20]}
        annotations.append({**box, "area": 330.5, "category_id": 17 + i % 3, "id": 2 * i})
        annotations.append({**box, "area": 90, "category_id": 1, "id": 2 * i + 1})
    annotations.append({**annotations[0], "id": 2 * n})  # two animals
    content = {"info": {}, "images": images, "licenses": [], "annotations": annotations, "categories": categories}
    write_json(folder / "annotations/instances_val2014.json", content)


def coco_karpathy(folder: pathlib.Path, n: int) -> None:
    """dataset_coco.json, val2014/"""
    images = []
    for i in range(n + 2):
        name, split = f"COCO_val2014_{i + 1:012d}.jpg", "test" if i < n else ("val", "restval")[i % 2]
        sentences = [{"tokens": [word], "raw": f"{word}.", "imgid": i, "sentid": i} for word in (WORDS[i % 10], "a")]
        images.append(
            {"filepath": "val2014", "sentids": [i], "filename": name, "imgid": i, "split": split, "cocoid": i + 1}
            | {"sentences": sentences}
        )
        if i < n:
            image(folder / "val2014" / name, i)
    write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})


def audiocaps(folder: pathlib.Path, n: int) -> None:
    """test.csv, audio/"""
    rows: list[Sequence[Any]] = [("audiocap_id", "youtube_id", "start_time", "caption")]
    for k in range(2):
        for i in range(n):
            rows.append((10 * i + k, f"-{i}_abcdEFGH", 30 * i, f"A bell, {WORDS[i % 10]} times, and {k} dogs"))
    write_csv(folder / "test.csv", rows)
    for i in range(n):
        names = (f"-{i}_abcdEFGH", f"Y-{i}_abcdEFGH", f"-{i}_abcdEFGH_{30 * i}", f"{10 * i + 1}")
        sound(folder / "audio" / f"{names[i % 4]}.wav", i)


def msrvtt(folder: pathlib.Path, n: int) -> None:
    """test_videodatainfo.json, videos/"""
    videos, sentences = [], []
    for i in range(n + 1):
        name, split = f"video{7010 + i}", "test" if i < n else "train"
        videos.append({"category": 9, "url": "https://", "video_id": name, "start time": 1.5, "end time": 3, "id": i})
        videos[-1]["split"] = split
        sentences += [
            {"caption": f"a {WORDS[i % 10]} moves {k}", "video_id": name, "sen_id": 10 * i + k} for k in range(3)
        ]
        if i < n:
            video(folder / "videos" / f"{name}.mp4", i)
    content = {"info": {"year": "2016"}, "videos": videos, "sentences": sentences[::-1]}
    write_json(folder / "test_videodatainfo.json", content)


def msrvtt_1ka(folder: pathlib.Path, n: int) -> None:
    """MSRVTT_JSFUSION_test.csv, videos/"""
    rows: list[Sequence[Any]] = [("key", "vid_key", "video_id", "sentence")]
    for i in range(n):
        rows.append((f"ret{i}", f"msr{9770 + i}", f"video{9770 + i}", f"a {WORDS[i % 10]}, moving"))
        video(folder / "videos" / f"video{9770 + i}.mp4", i)
    write_csv(folder / "MSRVTT_JSFUSION_test.csv", rows)


def vctk(folder: pathlib.Path, n: int) -> None:
    """txt/, wav48/"""
    for i in range(n):
        name = f"p{225 + i % 2}/p{225 + i % 2}_{i + 1:03d}"
        (folder / "txt" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "txt" / f"{name}.txt").write_text(f"Please call {WORDS[i % 10]}.\n")
        sound(folder / "wav48" / f"{name}.wav", i)


def davis(folder: pathlib.Path, n: int) -> None:
    """LOVEU-TGVE-2023_Dataset.csv, DAVIS_480p/480p_frames/; `n` is rounded up to a multiple of 4."""
    head = ["Video name", "Our GT caption", "Style Change Caption", "Object Change Caption"]
    rows: list[Sequence[Any]] = [[*head, "Background Change Caption", "Multiple Changes Caption", "", ""]]
    rows.append(["DAVIS Videos:", *[""] * 7])
    for i in range(-(-n // 4)):
        name = ("stunt", "gold-fish", "drift-turn", "judo", "ice-hockey")[i]
        rows.append(
            [name, f"A {name}.", f"A {name}, anime style.", "A dog.", f"A {name} at night.", "A dog, anime.", "", ""]
        )
        for k in range(30):
            image(folder / "DAVIS_480p/480p_frames" / name / f"{k:05d}.jpg", k, (16, 16))
    rows += [[""] * 8, ["Youtube Videos:", *[""] * 7], ["salsa", "Dancers.", "a", "b", "c", "d", "", ""]]
    write_csv(folder / "LOVEU-TGVE-2023_Dataset.csv", rows)


def _vqa(folder: pathlib.Path, n: int, prefix: str, kind: Callable[[int], Mapping[str, str]]) -> None:
    questions, annotations = [], []
    for i in range(n):
        file, number = 262_148 + i // 2, (262_148 + i // 2) * 1000 + i % 2
        questions.append({"image_id": file, "question": f"How many are {WORDS[i % 10]}?", "question_id": number})
        answers = [{"answer": WORDS[i % 10], "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)]
        annotations.append({"answers": answers, "image_id": file, "question_id": number, **kind(i)})
        if i % 2 == 0:
            image(folder / "val2014" / f"COCO_val2014_{file:012d}.jpg", i)
    shared = {"info": {}, "license": {}, "data_subtype": "val2014", "data_type": "mscoco"}
    content = {**shared, "task_type": "Open-Ended", "questions": questions}
    write_json(folder / f"{prefix}OpenEnded_mscoco_val2014_questions.json", content)
    write_json(folder / f"{prefix}mscoco_val2014_annotations.json", {**shared, "annotations": annotations[::-1]})


def vqav2(folder: pathlib.Path, n: int) -> None:
    """v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/"""
    kinds = ("yes/no", "number", "other")
    _vqa(
        folder, n, "v2_", lambda i: {"answer_type": kinds[i % 3], "question_type": "how", "multiple_choice_answer": ""}
    )


def okvqa(folder: pathlib.Path, n: int) -> None:
    """OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, val2014/"""
    _vqa(folder, n, "", lambda i: {"answer_type": "other", "question_type": ("one", "ten")[i % 2], "confidence": "3"})


def gqa(folder: pathlib.Path, n: int) -> None:
    """testdev_balanced_questions.json, images/"""
    questions = {}
    for i in range(n):
        kinds = {"detailed": "weatherVerify", "semantic": "global", "structural": ("verify", "query")[i % 2]}
        questions[f"2013072{i:02d}"] = {
            "semantic": [{"operation": "select", "dependencies": []}], "entailed": [], "groups": {},
            "question": f"Is it {WORDS[i % 10]}?", "imageId": f"n16131{i}", "isBalanced": True, "answer": "no",
            "equivalent": [], "types": kinds, "fullAnswer": "No.", "annotations": {}, "semanticStr": "select",
        }  # fmt: skip
        image(folder / "images" / f"n16131{i}.jpg", i)
    write_json(folder / "testdev_balanced_questions.json", questions)


def activitynet_qa(folder: pathlib.Path, n: int) -> None:
    """test_q.json, test_a.json, videos/"""
    questions, answers = [], []
    for i in range(n):
        name = f"-{i}IUV7WYKXg"
        questions.append({"video_name": name, "question": f"is it {WORDS[i % 10]}", "question_id": f"v_{name}_3"})
        answers.append({"answer": ("no", "yes")[i % 2], "type": i % 9, "question_id": f"v_{name}_3"})
        video(folder / "videos" / f"v_{name}.mp4", i)
    write_json(folder / "test_q.json", questions)
    write_json(folder / "test_a.json", answers[::-1])


def mvbench_copy(folder: pathlib.Path, n: int) -> None:
    """json/, video/: at most one question of each kind."""
    for i, (kind, row) in enumerate(mvbench.KINDS.items()):
        name = f"clip{i}" if row.fps else f"clip{i}.mp4"
        record = {
            "video": name,
            "question": f"What is {WORDS[i % 10]}?",
            "candidates": ["a.", "b.", "c."],
            "answer": "b.",
        }
        if row.bounds:
            record |= {"start": 0.4, "end": 1.5, "accurate_start": 0.5}
        if row.fps:
            record |= {"fps": 3, "subtitle": ""}
            for k in range(6):
                image(folder / "video" / row.folder / name / f"{k + 1:05d}.jpg", k, (16, 16))
        else:
            video(folder / "video" / row.folder / name, i)
        write_json(folder / "json" / f"{kind}.json", [record])


def llava_bench(folder: pathlib.Path, n: int) -> None:
    """questions.jsonl, context.jsonl, answers_gpt4.jsonl, images/"""
    questions, answers = [], []
    for i in range(n):
        kind = ("conv", "detail", "complex")[i % 3]
        questions.append(
            {"question_id": i, "image": f"{i // 2:03d}.jpg", "category": kind, "text": f"Is it {WORDS[i % 10]}?"}
        )
        answers.append({"question_id": i, "text": f"It is {WORDS[i % 10]}.", "answer_id": f"a{i}", "model_id": "gpt-4"})
    contexts = [{"id": f"{k:03d}", "image": f"{k:03d}.jpg", "caption": f"A picture of {k}."} for k in range(-(-n // 2))]
    for k in range(len(contexts)):
        image(folder / "images" / f"{k:03d}.jpg", k)
    write_lines(folder / "questions.jsonl", questions)
    write_lines(folder / "context.jsonl", contexts)
    write_lines(folder / "answers_gpt4.jsonl", answers)


def scienceqa(folder: pathlib.Path, n: int) -> None:
    """problems.json, pid_splits.json, test/"""
    problems = {}
    for i in range(n + 1):
        problems[str(i + 1)] = {
            "question": f"Which is {WORDS[i % 10]}?", "choices": ["West Virginia", "Louisiana"], "answer": i % 2,
            "hint": "Look at it." if i % 3 else "", "image": None if i % 2 else "image.png", "task": "closed choice",
            "grade": "grade2", "subject": ("social science", "natural science")[i % 2], "topic": "geography",
            "category": "Geography", "skill": "Read a map", "lecture": "", "solution": "", "split": "test",
        }  # fmt: skip
        if i % 2 == 0 and i < n:
            image(folder / "test" / str(i + 1) / "image.png", i)
    write_json(folder / "problems.json", problems)
    splits = {"train": [str(n + 1)], "val": [str(n + 1)], "test": [str(i + 1) for i in range(n)]}
    write_json(folder / "pid_splits.json", splits)


LAYOUTS: dict[str, Callable[[pathlib.Path, int], None]] = {  # task -> writes a copy with `n` samples
    "coco-generation": coco_captions,
    "audiocaps-generation": audiocaps,
    "msrvtt-generation": msrvtt,
    "msrvtt-generation-1ka": msrvtt_1ka,
    "coco-captions": coco_karpathy,
    "audiocaps-captions": audiocaps,
    "msrvtt-captions": msrvtt,
    "coco-object-editing": coco_instances,
    "coco-background-editing": coco_instances,
    "vctk-editing": vctk,
    "davis-editing": davis,
    "vqav2": vqav2,
    "okvqa": okvqa,
    "gqa": gqa,
    "activitynet-qa": activitynet_qa,
    "mvbench": mvbench_copy,
    "llava-bench": llava_bench,
    "scienceqa": scienceqa,
}

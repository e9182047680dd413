"""COCO: images from captions, captions of the Karpathy split, and images that are edited."""

import collections
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.selection import pick, subset
from nextgpt_jax.evaluation.tasks import measures
from nextgpt_jax.evaluation.tasks.files import Media, annotations, read_lists
from nextgpt_jax.evaluation.tasks.wording import CAPTION, TUNED
from nextgpt_jax.evaluation.types import Sample, Task

_ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
_IMAGES = "http://images.cocodataset.org/zips/val2014.zip"
_CAPTIONS, _INSTANCES = "annotations/captions_val2014.json", "annotations/instances_val2014.json"
_KARPATHY = "dataset_coco.json"
IMAGES, EDITS = 30_000, 1_000
_LARGE = 0.1  # share of the image that an animal covers at least, to be edited
_PLACES = (
    *("in the snow", "on a beach", "in a forest", "in a desert", "on a city street", "in a field of flowers"),
    *("under a starry sky", "in front of mountains"),
)
_VOWELS = "aeiou"

GENERATION_LAYOUT = {_CAPTIONS: _ANNOTATIONS, "val2014/": _IMAGES}
CAPTIONS_LAYOUT = {
    _KARPATHY: "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    "val2014/": _IMAGES,
}
EDITING_LAYOUT = {_CAPTIONS: _ANNOTATIONS, _INSTANCES: _ANNOTATIONS, "val2014/": _IMAGES}


def _captions(path: pathlib.Path) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Files and captions of images, by their ids."""
    files, found = read_lists(
        path,
        images=lambda r: (r.integer("id"), r.text("file_name")),
        annotations=lambda r: (r.integer("id"), r.integer("image_id"), r.text("caption")),
    )
    captions: dict[int, list[str]] = collections.defaultdict(list)
    for _, image, caption in sorted(found):
        captions[image].append(caption)
    names = dict(files)
    if unknown := captions.keys() - names.keys():
        raise UserError(f"{path}: annotations name the image {min(unknown)}, which is not among the images")
    return names, dict(captions)


def load_generation(data: pathlib.Path) -> Iterator[Sample]:
    """30,000 images of val2014, each with the first of its captions."""
    path = annotations(data, GENERATION_LAYOUT, _CAPTIONS)
    names, captions = _captions(path)
    images, found = Media(data, GENERATION_LAYOUT, "val2014"), {}
    for image in subset(sorted(captions), IMAGES, str):
        found[image] = images.find(names[image])
    images.check(path)
    for image, file in found.items():
        caption = captions[image][0]
        yield Sample(str(image), f"Generate an image of: {caption}", references={"caption": caption, "image": file})


class _Captioned(NamedTuple):
    image: str
    file: str
    split: str
    captions: list[str]


def load_captions(data: pathlib.Path) -> Iterator[Sample]:
    """The test images of the Karpathy split, 5,000."""
    path = annotations(data, CAPTIONS_LAYOUT, _KARPATHY)

    (records,) = read_lists(
        path,
        images=lambda r: _Captioned(
            r.name("cocoid"),
            r.text("filename"),
            r.text("split"),
            [sentence.text("raw") for sentence in r.objects("sentences")],
        ),
    )
    images = Media(data, CAPTIONS_LAYOUT, "val2014")
    tested = [(record, images.find(record.file)) for record in records if record.split == "test"]
    if not tested:
        raise UserError(f"{path} has no images whose split is test")
    images.check(path)
    for record, file in tested:
        prompt = f"<image>\n{CAPTION.format(modality='image')}"
        yield Sample(record.image, prompt, {"image": [file]}, {"captions": record.captions})


class _Animal(NamedTuple):
    """An image with one animal, and a caption that names it."""

    image: int
    file: pathlib.Path
    name: str
    caption: str
    others: list[str]  # names of other animals


def _animals(data: pathlib.Path) -> list[_Animal]:
    captions_file = annotations(data, EDITING_LAYOUT, _CAPTIONS)
    path = annotations(data, EDITING_LAYOUT, _INSTANCES)
    names, captions = _captions(captions_file)
    sizes, objects, categories = read_lists(
        path,
        images=lambda r: (r.integer("id"), r.integer("height") * r.integer("width")),
        annotations=lambda r: (r.integer("image_id"), r.integer("category_id"), r.number("area"), r.integer("iscrowd")),
        categories=lambda r: (r.integer("id"), r.text("name"), r.text("supercategory")),
    )
    pixels, animals = dict(sizes), {number: name for number, name, kind in categories if kind == "animal"}
    shown: dict[int, list[tuple[str, float]]] = collections.defaultdict(list)
    for image, category, area, crowd in objects:
        if category in animals:
            if image not in pixels:
                raise UserError(f"{path}: annotations name the image {image}, which is not among the images")
            shown[image].append((animals[category], 0 if crowd else area / pixels[image]))
    found, images = [], Media(data, EDITING_LAYOUT, "val2014")
    for image, seen in sorted(shown.items()):
        (name, share), *more = seen
        caption = next((c for c in captions.get(image, ()) if re.search(rf"\b{name}\b", c, re.IGNORECASE)), "")
        if not more and share >= _LARGE and caption:
            others = sorted({*animals.values()} - {name})
            found.append((image, names[image], name, caption, others))
    chosen = [_Animal(i, images.find(f), *rest) for i, f, *rest in subset(found, EDITS, lambda row: str(row[0]))]
    if not chosen or not chosen[0].others:
        raise UserError(f"{path} and {captions_file} have no image with one large animal that a caption names")
    images.check(path)
    return chosen


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in _VOWELS else f"a {noun}"


def load_objects(data: pathlib.Path) -> Iterable[Sample]:
    """Animals that become others."""
    for animal in _animals(data):
        new = pick(animal.others, f"object {animal.image}")
        named = re.sub(rf"\b(an?) {animal.name}\b", _a(new), animal.caption, flags=re.IGNORECASE)
        target = re.sub(rf"\b{animal.name}\b", new, named, flags=re.IGNORECASE)
        yield _edit(animal, f"Replace the {animal.name} with {_a(new)}: {target}", target)


def load_backgrounds(data: pathlib.Path) -> Iterable[Sample]:
    """Animals that are moved elsewhere."""
    for animal in _animals(data):
        target = f"{_a(animal.name)} {pick(_PLACES, f'background {animal.image}')}"
        yield _edit(animal, f"Change the background of the image: {target}", f"a photo of {target}")


def _edit(animal: _Animal, prompt: str, target: str) -> Sample:
    references = {"caption": target, "image": animal.file}
    return Sample(str(animal.image), f"<image>\n{prompt}", {"image": [animal.file]}, references)


_EDITING = (
    f"val2014, {EDITS:,} of the images with one animal that covers at least a tenth of them and is named by a caption"
)
_EDITING_DIFFERENCES = (
    "The paper names COCO and compares with PFB-Diff, and publishes neither images, instructions nor strength; that "
    "method is given masks, this one is not. FID compares the edited images with their originals, and is higher for "
    "so few images than for more."
)
TASKS = (
    Task(
        "coco-generation",
        "text to image: COCO, 30,000 captions",
        GENERATION_LAYOUT,
        load_generation,
        measures.fid,
        {"modality": "image", "temperature": 0.0},
        {"FID": 11.28},
        f"val2014, the first caption of {IMAGES:,} images, chosen by a hash of their ids; 'Generate an image of: "
        "CAPTION'; FID with these images",
        "The paper publishes neither its captions, prompt, seeds nor resize protocol; other papers choose 30,000 "
        "captions at random, or compare with all 40,504 images.",
    ),
    Task(
        "coco-captions",
        "captions of images: COCO, Karpathy's test split",
        CAPTIONS_LAYOUT,
        load_captions,
        measures.captions,
        {"modality": "text", "temperature": 0.0, "max_new_tokens": 64},
        {"BLEU-4": 44.3, "METEOR": 32.9, "CIDEr": 156.7},
        f"Karpathy's test split, 5,000 images with 5 captions each; '{CAPTION.format(modality='image')}'",
        TUNED,
    ),
    Task(
        "coco-object-editing",
        "editing of images: COCO, another object",
        EDITING_LAYOUT,
        load_objects,
        measures.image_edits,
        {"edit": "image", "strength": 0.6, "temperature": 0.0},
        {"CLIP": 29.31, "FID": 6.52},
        f"{_EDITING}; 'Replace the CAT with a DOG: CAPTION', the caption with the other name; CLIP score with it",
        _EDITING_DIFFERENCES,
    ),
    Task(
        "coco-background-editing",
        "editing of images: COCO, another background",
        EDITING_LAYOUT,
        load_backgrounds,
        measures.image_edits,
        {"edit": "image", "strength": 0.6, "temperature": 0.0},
        {"CLIP": 27.29, "FID": 15.20},
        f"{_EDITING}; 'Change the background of the image: a CAT on a beach', or one of 7 other places; CLIP score "
        "with 'a photo of a CAT on a beach'",
        _EDITING_DIFFERENCES,
    ),
)

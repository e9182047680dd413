"""What conversations are about: topics, and patterns of modalities."""

import dataclasses
import pathlib
from collections.abc import Collection, Sequence

from nextgpt_jax.errors import UserError, nearest
from nextgpt_jax.json_files import read_text
from nextgpt_jax.modalities import MODALITIES, output_modalities

MIN_TURNS, MAX_TURNS = 3, 7

TOPICS = (  # words after the colon help to find media
    "a day at the beach: sea, waves, sand", "cooking dinner together: kitchen, food, vegetables",
    "a storm in the mountains: clouds, lightning, rain, thunder", "getting a dog: puppy, animal, barking",
    "birds in the garden: bird, singing, tree", "an evening in the city: street, lights, traffic, buildings",
    "football on Sunday: game, players, stadium, ball", "learning the guitar: music, instrument, song",
    "a farm in spring: cows, sheep, field, tractor", "old trains: railway, locomotive, station",
    "a visit to the zoo: lion, elephant, monkey, animals", "snow and winter sports: ski, ice, mountain",
    "the first day of school: children, classroom, teacher", "a wedding party: bride, dance, flowers",
    "camping by a lake: tent, forest, fire, water", "cats and what they do: cat, kitten, sleeping",
    "a busy market: people, fruit, stalls", "baking bread: oven, flour, table",
    "a hike through the forest: trees, path", "sailing: boat, wind, harbor",
    "a thunderstorm at night: rain, dark, lightning", "horses: riding, race, meadow",
    "a rock concert: band, stage, crowd, guitar", "the doctor's visit: hospital, medicine, patient",
    "a garden in summer: roses, flowers, bees", "cars and races: car, engine, road, driver",
    "painting and museums: art, picture, gallery", "flying: airplane, airport, sky",
    "cleaning the house: room, vacuum", "a birthday with children: cake, balloons, play",
    "rivers and waterfalls: water, stream, rocks", "the moon and the stars: night, sky, space",
    "working in an office: desk, computer, meeting", "a coffee in the morning: cup, cafe, breakfast",
    "christmas at home: tree, snow, cookies, candles", "fishing: river, boat, man, fish",
    "fashion and clothes: dress, model, style", "yoga and running: fitness, exercise",
    "a bicycle tour: bike, road, countryside", "building a house: construction, workers, tools",
    "insects up close: butterfly, bee, spider", "a choir: singing, voices, church, bells",
    "the desert: sand, sun, camel", "pottery and woodwork: hands, craft, workshop",
    "rain on the window: drops, glass", "under water: fish, diving, reef, ocean", "tennis: player, court, match",
    "an old castle: tower, wall, history", "fireworks: night, explosion, celebration, crowd",
    "a radio play: voices, steps, door, speech", "frogs and ponds: frog, water, croaking",
    "markets of flowers: tulips, colors", "robots: machine, laboratory, future",
    "a trip by bus: street, engine, passengers", "sunrise: morning, sky, clouds, sun",
    "the theater: stage, actors, dance", "emergency services: siren, fire truck, police",
    "clocks: ticking, tower, time", "tea: cup, leaves, garden", "a picnic: park, grass, basket, friends",
)  # fmt: skip

PATTERNS = (  # turns: inputs > outputs; + joins several
    "image>text, text>image, text>text",
    "image>text, text>video, text>audio",
    "text>image, text>audio, text>text",
    "text>text, text>image, text>video",
    "audio>text, text>image, text>text",
    "video>text, text>audio, text>text",
    "image>audio, text>text, text>video",
    "audio>image, text>video, text>text",
    "text>text, image>text, text>image, text>text",
    "image>text, audio>text, text>video, text>text",
    "text>image, text>video, text>audio, text>text",
    "video>text, text>image, image>text, text>audio",
    "image>text, text>text, text>image+audio, text>text",
    "audio>text, text>video, text>text, image>text, text>audio",
    "text>image, image>text, text>text, text>video, text>text",
    "image>video, text>text, audio>text, text>image, text>text",
    "text>text, text>audio, text>image, video>text, text>text",
    "image+audio>text, text>video, text>text, text>image, text>text",
    "text>image, text>text, audio>text, text>video, image>text, text>audio",
    "video>text, text>text, text>image, image>text, text>audio, text>text",
    "image>text, text>image, text>text, audio>text, text>audio, text>video, text>text",
)


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which media the messages of a conversation bring and which the replies do: one pair of tuples for each turn."""

    turns: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    def inputs(self) -> set[str]:
        """The modalities that are read."""
        return {name for given, _ in self.turns for name in given}

    def outputs(self) -> set[str]:
        """The modalities that are made."""
        return {name for _, made in self.turns for name in made}

    def __str__(self) -> str:
        return ", ".join(f"{'+'.join(given) or 'text'}>{'+'.join(made) or 'text'}" for given, made in self.turns)


def parse_pattern(text: str) -> Pattern:
    """ "image>text, text>video+audio, text>text" as a pattern.

    Raises:
      UserError: it is none, or has not 3 to 7 turns, or no medium at all.
    """
    turns = []
    for turn in text.split(","):
        sides = turn.split(">")
        if len(sides) != 2:
            raise UserError(f"pattern {text!r}: write turns as inputs>outputs, such as image>text, text>video+audio")
        turns.append((_side(sides[0], tuple(MODALITIES), text), _side(sides[1], output_modalities(), text)))
    pattern = Pattern(tuple(turns))
    if not MIN_TURNS <= len(turns) <= MAX_TURNS:
        raise UserError(f"pattern {text!r} has {len(turns)} turns: give {MIN_TURNS} to {MAX_TURNS}")
    if not pattern.inputs() | pattern.outputs():
        raise UserError(f"pattern {text!r} has no medium")
    return pattern


def _side(text: str, known: Sequence[str], pattern: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split("+")]
    for name in names:
        if name not in (*known, "text"):
            raise UserError(
                f"pattern {pattern!r}: {name!r} is not one of text, {', '.join(known)}{nearest(name, known)}"
            )
    return tuple(name for name in names if name != "text")


def read_patterns(path: str) -> list[Pattern]:
    """The patterns of a file, one a line; of none, those of this project.

    Raises:
      UserError: it cannot be read, or has a line that is no pattern.
    """
    return [parse_pattern(line) for line in (_lines(path) if path else PATTERNS)]


def read_topics(given: str) -> list[str]:
    """Topics: of a text file, one a line; or a list with commas; of none, those of this project.

    Raises:
      UserError: the file cannot be read, or there are none.
    """
    if not given:
        return list(TOPICS)
    if not given.isprintable():  # bytes that are no UTF-8, too
        raise UserError("--topics has characters that are no text")
    if pathlib.Path(given).suffix == ".txt":
        return _lines(given)
    if topics := [topic.strip() for topic in given.split(",") if topic.strip()]:
        return topics
    raise UserError("--topics: give topics with commas, or a .txt file with one a line")


def _lines(path: str) -> list[str]:
    if lines := [line.strip() for line in read_text(path).splitlines() if line.strip() and not line.startswith("#")]:
        return lines
    raise UserError(f"{path} has no lines")


def usable(patterns: Sequence[Pattern], inputs: Collection[str], outputs: Collection[str]) -> list[Pattern]:
    """The patterns that need no other modalities."""
    return [p for p in patterns if p.inputs() <= set(inputs) and p.outputs() <= set(outputs)]

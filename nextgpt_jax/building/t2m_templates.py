"""Requests for a medium and the replies that bring it, put together from short pieces.

A request is an occasion (or none) and a question; `{c}` stands for the caption, which may be a phrase or a sentence, so
it follows a colon or a dash or is quoted, and is never bent into another sentence.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple


class Pieces(NamedTuple):
    """What requests for a modality, and the replies to them, are made of."""

    occasions: tuple[str, ...]
    questions: tuple[str, ...]
    replies: tuple[str, ...]


_OPENINGS = (
    "", "", "", "Sure.", "Of course.", "Gladly.", "Happy to.", "With pleasure.", "No problem.", "Certainly.",
    "Right away.", "Good idea.", "All right.", "Yes, I can do that.", "Let me see.", "That should be fun.", "Nice one.",
)  # fmt: skip
_CLOSINGS = (
    "", "", "", "", "", "Tell me if anything should be different.", "I can try another version if you like.",
    "I hope it is what you had in mind.", "Let me know how it suits you.", "Say so if you want changes.",
    "Does it come close to what you imagined?", "Shall I change anything?",
)  # fmt: skip
PIECES = {
    "image": Pieces(
        occasions=(
            "I am making slides and one of them is still empty.",
            "I need something to go with a short article.",
            "My sister asked me for a card with a motif of her own choice.",
            "We are decorating the classroom this week.",
            "I am learning to describe what I see, and examples help me.",
            "I keep a diary and want to add a picture to today's page.",
            "There is a blank space on our notice board.",
            "I am looking for a new background for my desktop.",
            "I am collecting ideas for a poster.",
            "A friend told me about this and I cannot quite imagine it.",
            "I am writing a children's book and have one more page to fill.",
            "Our newsletter goes out tomorrow and lacks an illustration.",
            "I would like to practise drawing from a model.",
            "I have a clear view of it in my head but cannot draw.",
            "This is for the cover of a notebook.",
            "We are playing a guessing game with pictures.",
        ),
        questions=(
            "Show me an image of this: {c}",
            "Please draw the following for me: {c}",
            "Could you make a picture of this? {c}",
            'Can you paint me "{c}"?',
            "I would like to see this as a picture: {c}",
            "Make an image that fits this description: {c}",
            'What would "{c}" look like? Show me.',
            "Here is what should be in the picture: {c}",
            "Create an image for these words: {c}",
            "Picture, please - {c}",
            'I need a picture with the title "{c}".',
            "Turn this line into an image: {c}",
            'Could I have an illustration of "{c}"?',
            "Let me see it: {c}",
            "Generate an image. It should show this: {c}",
            "Please illustrate this scene: {c}",
            'Would you sketch "{c}" for me?',
            "I am after a picture along these lines: {c}",
            '"{c}" - can you show me that?',
            "Visualize the following: {c}",
        ),
        replies=(
            "Here is the image.", "Here is a picture of it.", "This is how I picture it.", "Take a look at this.",
            "Here you are.", "I have drawn it for you.", "This is what it could look like.", "Here is my illustration.",
            "I made this picture for you.", "Have a look:", "This image should fit your description.",
            "Here it is: {c}", "Your picture:", "I imagine it like this.", 'This is my take on "{c}".',
            "Here is an image that shows it.",
        ),
    ),
    "video": Pieces(
        occasions=(
            "I am cutting a short film and one shot is missing.",
            "We need a moving background for the stage.",
            "I want to open my talk with a few seconds of film.",
            "My channel needs a new intro.",
            "I would rather watch this than read about it.",
            "A still picture would not do it justice.",
            "The screen in our lobby shows clips all day.",
            "I am trying to imagine how this moves.",
            "This is for a lesson about observing closely.",
            "I am planning a scene and want a rough preview.",
            "Our advertisement needs one more cut.",
            "I missed this when it happened.",
            "The museum asked us for a short loop.",
            "I have the sound already, only the film is lacking.",
            "We are collecting clips for a quiz.",
            "My grandmother would love to see this in motion.",
        ),
        questions=(
            "Make a video of this: {c}",
            "Please show me a clip of the following: {c}",
            "Could you film this for me? {c}",
            'Can you make a short video of "{c}"?',
            "I would like to see this in motion: {c}",
            "Create a clip that fits this description: {c}",
            'How would "{c}" look as a film? Show me.',
            "This is what should happen in the video: {c}",
            "Generate a video for these words: {c}",
            "A short clip, please - {c}",
            'I need footage with the title "{c}".',
            "Turn this line into a video: {c}",
            'Could I have a few seconds of "{c}"?',
            "Let me watch it: {c}",
            "Produce a video. It should show this: {c}",
            "Please bring this scene to life: {c}",
            'Would you animate "{c}" for me?',
            "I am after a clip along these lines: {c}",
            '"{c}" - can I see that as a video?',
            "Show the following as a moving picture: {c}",
        ),
        replies=(
            "Here is the video.", "Here is a clip of it.", "This is how it could look in motion.", "Watch this.",
            "Here you are.", "I have made a short video of it.", "This clip shows it.", "Here are a few seconds of it.",
            "I put this clip together for you.", "Press play:", "This video should fit your description.",
            "Here it is: {c}", "Your clip:", "I imagine the scene like this.", 'This is my version of "{c}".',
            "Here is a video that shows it.",
        ),
    ),
    "audio": Pieces(
        occasions=(
            "I am producing a radio play and one sound is missing.",
            "The scene in my game is still silent.",
            "I cannot sleep without a sound in the background.",
            "We are guessing sounds in class today.",
            "My podcast needs something before the first words.",
            "I want to know what this sounds like.",
            "I am learning to tell sounds apart.",
            "The clip that I cut has lost its sound.",
            "A friend described this to me, and I would like to hear it.",
            "I am looking for an unusual ring tone.",
            "Our exhibition has a corner for listening.",
            "I have never heard this with my own ears.",
            "This is for the soundtrack of a short film.",
            "I collect everyday sounds.",
            "The stage is dark at this point, so the sound has to tell it.",
            "I am testing my new headphones.",
        ),
        questions=(
            "Let me hear this: {c}",
            "Please make a sound of the following: {c}",
            "Could you record this for me? {c}",
            'Can you play me "{c}"?',
            "I would like to hear this: {c}",
            "Create a recording that fits this description: {c}",
            'What does "{c}" sound like? Play it to me.',
            "This is what should be heard: {c}",
            "Generate audio for these words: {c}",
            "A sound, please - {c}",
            'I need a recording with the title "{c}".',
            "Turn this line into sound: {c}",
            'Could I have a few seconds of "{c}"?',
            "Make it audible: {c}",
            "Produce an audio clip. One should hear this: {c}",
            "Please let this scene be heard: {c}",
            'Would you imitate "{c}" for me?',
            "I am after a sound along these lines: {c}",
            '"{c}" - can I listen to that?',
            "Give me an audio clip of the following: {c}",
        ),
        replies=(
            "Here is the sound.", "Here is a recording of it.", "This is what it sounds like.", "Listen to this.",
            "Here you are.", "I have made the sound for you.", "This clip lets you hear it.",
            "Here are a few seconds of it.", "I made this recording for you.", "Have a listen:",
            "This sound should fit your description.",
            "Here it is: {c}", "Your audio clip:", "I imagine it sounds like this.", 'This is my version of "{c}".',
            "Here is an audio clip of it.",
        ),
    ),
}  # fmt: skip


def request_and_reply(modality: str, caption: str, chance: random.Random, short: bool = False) -> tuple[str, str]:
    """A request for a medium with this caption, and a reply that brings it (without the mark of the medium).

    Args:
      short: the request has no occasion, and the reply no words around it.
    """
    pieces, words = PIECES[modality], tidy(caption)
    question = fill(pieces.questions, words, chance)
    if short:
        return question, fill(pieces.replies, words, chance)
    occasion = chance.choice(pieces.occasions) if chance.random() < 0.5 else ""
    reply = fill(pieces.replies, words, chance)
    opening, closing = chance.choice(_OPENINGS), chance.choice(_CLOSINGS)
    if reply.endswith((":", words)):
        closing = ""  # the medium follows at once
    return _joined(occasion, question), _joined(opening, reply, closing)


def tidy(caption: str) -> str:
    """A caption as people write it in a message: without blanks before its punctuation, and its last full stop."""
    words = " ".join(caption.split())
    for mark in ",.;:!?":
        words = words.replace(f" {mark}", mark)
    return words.removesuffix(".").strip()


def fill(templates: Sequence[str], words: str, chance: random.Random) -> str:
    """One of the templates, with the words in place of {c}; of those without quotes, if the words have some."""
    fitting = [text for text in templates if '"{c}' not in text] if '"' in words else templates
    return chance.choice(fitting).replace("{c}", words)


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)

"""Stop strings of a request: text at which its answer ends, which is not part of it."""

from collections.abc import Sequence

from nextgpt_jax.inference.types import Response


class StopText:
    """Cuts a streamed text at the first stop string."""

    def __init__(self, stops: Sequence[str]):
        self._stops = [stop for stop in stops if stop]
        self._held, self.stopped = "", False

    def advance(self, delta: str, done: bool) -> str:
        """The text to show after `delta`; what may be the beginning of a stop string is held back until `done`."""
        if self.stopped:
            return ""
        text = self._held + delta
        found = [i for stop in self._stops if (i := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = 0 if done else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    return max((n for n in range(1, min(len(text), len(stop) - 1) + 1) if text.endswith(stop[:n])), default=0)


def cut_response(response: Response, stops: Sequence[str]) -> Response:
    """The response up to the first stop string in its text; media that come after it are not part of it.

    Media are not yet in `response.media`.
    """
    text = "".join(s for s in response.segments if isinstance(s, str))
    found = [i for stop in stops if stop and (i := text.find(stop)) >= 0]
    if not found:
        return response
    room, segments = min(found), []
    for segment in response.segments:
        if not isinstance(segment, str):
            segments.append(segment)
        else:
            if segment[:room]:
                segments.append(segment[:room])
            if len(segment) >= room:
                break
            room -= len(segment)
    return Response(text[: min(found)].strip(), [], response.tokens, tuple(segments), "stop", response.prompt_tokens)

"""Videos that are being made, and those that can be fetched: what their clients poll."""

import asyncio
import dataclasses
import secrets
import time
from typing import Any

from nextgpt_jax.inference.types import Request, Response
from nextgpt_jax.serving.http import outputs
from nextgpt_jax.serving.http.answers import Answers
from nextgpt_jax.serving.http.errors import ApiError, api_error
from nextgpt_jax.serving.http.generation import medium_of
from nextgpt_jax.serving.http.services import Services
from nextgpt_jax.serving.http.store import StoredFile


@dataclasses.dataclass
class Job:
    """A video. `caller`: who made it, and alone can see it."""

    caller: str
    prompt: str
    seed: int
    id: str = dataclasses.field(default_factory=lambda: f"video_{secrets.token_hex(16)}")
    created: float = dataclasses.field(default_factory=time.time)
    status: str = "queued"
    completed: float | None = None
    error: dict[str, str | None] | None = None
    file: StoredFile | None = None
    task: asyncio.Task[None] | None = None

    @property
    def expires(self) -> float | None:
        """Seconds since 1970; None: it is being made."""
        return None if self.completed is None else self.file.expires if self.file else self.completed + 3600


class VideoJobs:
    """All of a server. Used in its event loop."""

    def __init__(self, services: Services):
        self._services = services
        self._jobs: dict[str, Job] = {}  # oldest first

    async def create(self, request: Request, prompt: str, caller: str) -> Job:
        """Begins a video. Raises as `Batcher.submit`."""
        self._forget_expired()
        answers = self._services.answers()
        await answers.submit([request], stream=True)
        job = Job(caller, prompt, request.seed)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._make(job, answers))
        return job

    def get(self, name: str, caller: str) -> Job:
        """A video of this caller. Raises ApiError."""
        self._forget_expired()
        job = self._jobs.get(name)
        if job is None or job.caller != caller:
            raise ApiError(f"there is no video {name!r}, or no longer", 404, code="not_found")
        return job

    def of_caller(self, caller: str) -> list[Job]:
        """The videos of a caller, oldest first."""
        self._forget_expired()
        return [job for job in self._jobs.values() if job.caller == caller]

    def delete(self, job: Job) -> None:
        """Removes a video, and gives it up if it is being made."""
        del self._jobs[job.id]
        if job.task:
            job.task.cancel()
        if job.file:
            self._services.files.delete(job.file.name)

    async def close(self) -> None:
        """Gives up what is being made: nobody could fetch it."""
        tasks = [job.task for job in self._jobs.values() if job.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def to_json(self, job: Job) -> dict[str, Any]:
        """As OpenAI's API describes a video. `seed` makes it again."""
        options = self._services.engine.defaults.video
        times = {"created_at": job.created, "completed_at": job.completed, "expires_at": job.expires}
        return {
            "id": job.id,
            "object": "video",
            "model": self._services.settings.name,
            "status": job.status,
            "progress": 100 if job.status == "completed" else 0,
            "prompt": job.prompt,
            "seconds": seconds(options),
            "size": self._services.size("video"),
            "error": job.error,
            "remixed_from_video_id": None,
            "seed": job.seed,
        } | {name: None if value is None else int(value) for name, value in times.items()}

    async def _make(self, job: Job, answers: Answers) -> None:
        try:
            with answers:
                response: Response | None = None
                async for _, event in answers.events():
                    job.status = "in_progress"
                    response = event.response
            assert response
            medium = medium_of(response, "video")
            job.file = await self._services.run(outputs.store, medium, self._services.files)
            if job.id not in self._jobs:  # deleted meanwhile
                self._services.files.delete(job.file.name)
            job.status = "completed"
        except Exception as error:
            found = api_error(error)
            job.status, job.error = "failed", {"code": found.code or "error", "message": found.message}
        finally:
            job.completed = time.time()

    def _forget_expired(self) -> None:
        now = time.time()
        for name in [j.id for j in self._jobs.values() if j.expires is not None and j.expires <= now]:
            del self._jobs[name]


def seconds(options: Any) -> str:
    """The length of generated videos, as OpenAI's API writes it."""
    return f"{options.frames / options.fps:g}"

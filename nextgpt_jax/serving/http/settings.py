"""The settings of the server."""

import dataclasses

from nextgpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the server allows; the model's own limits are in config.serving.

    Attributes:
      name: of the model, in requests and in /v1/models.
      keys: one of these has to come with each request to /v1; none: everybody may ask.
      rate: requests per minute and key (or address, without keys); 0: no limit.
      max_upload: bytes of the body of a request.
      upload_seconds: until the body of a request has arrived.
      send_seconds: until a client has taken a piece of a stream.
      ping_seconds: a stream that has nothing to say sends a comment this often, so that proxies keep it open.
      max_inputs: media in a request.
      max_n: answers, images or sounds for one request.
      allow_urls: fetch media from public http(s) addresses.
      url_seconds: until such a medium has arrived.
      public_url: the server's own address in the URLs of generated media; "": the one that the client used.
      file_seconds: how long generated media can be fetched.
      max_stored: bytes of generated media; with more, the oldest go first.
      threads: that decode and encode media.
    """

    name: str = "nextgpt"
    keys: tuple[str, ...] = ()
    rate: float = 0.0
    max_upload: int = 64_000_000
    upload_seconds: float = 60.0
    send_seconds: float = 60.0
    ping_seconds: float = 15.0
    max_inputs: int = 16
    max_n: int = 10
    allow_urls: bool = False
    url_seconds: float = 10.0
    public_url: str = ""
    file_seconds: float = 3600.0
    max_stored: int = 2_000_000_000
    threads: int = 4

    def __post_init__(self):
        """Raises UserError if a setting is out of range."""
        positive = (
            "max_upload upload_seconds send_seconds ping_seconds max_inputs max_n url_seconds file_seconds max_stored"
        )
        for name in [*positive.split(), "threads"]:
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: give more than 0")
        if not self.rate >= 0:
            raise UserError(f"rate is {self.rate}: give requests per minute, or 0 for no limit")
        if any(not key.strip() or not key.isascii() for key in self.keys):
            raise UserError("an API key is empty or has characters that are not ASCII")

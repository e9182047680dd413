"""Media from public addresses, within limits: for servers that allow it."""

import http.client
import ipaddress
import pathlib
import socket
import ssl
import time
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from nextgpt_jax.errors import first_line
from nextgpt_jax.files import format_size
from nextgpt_jax.serving.http.errors import ApiError

_REDIRECTS, _BLOCK = 3, 1 << 16


def fetch(url: str, path: pathlib.Path, *, max_bytes: int, seconds: float) -> str:
    """Writes what an http(s) URL has to a file, and returns its media type.

    Connections go to the address that was checked, so that a name cannot change its mind; proxies are not used, and
    redirects are checked like the URL itself.

    Raises:
      ApiError: the address is not public, or the file is missing, too long or too slow.
    """
    deadline = time.monotonic() + seconds
    try:
        for _ in range(_REDIRECTS + 1):
            parts = urlsplit(url)
            connection = _connect(parts, deadline)
            try:
                target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
                connection.request("GET", target, headers={"User-Agent": "nextgpt", "Accept": "*/*"})
                response = connection.getresponse()
                if location := response.status in (301, 302, 303, 307, 308) and response.getheader("Location"):
                    url = urljoin(url, location)
                    continue
                if response.status != 200:
                    raise ApiError(f"{url}: status {response.status}", code="invalid_url")
                _copy(response, url, path, max_bytes, deadline, connection)
                return (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
            finally:
                connection.close()
    except TimeoutError:
        raise ApiError(f"{url}: it did not arrive within {seconds:g} s", code="invalid_url") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ApiError(f"{url}: {first_line(error)}", code="invalid_url") from None
    raise ApiError(f"{url}: more than {_REDIRECTS} redirects", code="invalid_url")


def _left(deadline: float) -> float:
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def _copy(response: Any, url: str, path: pathlib.Path, max_bytes: int, deadline: float, connection: Any) -> None:
    size = 0
    with path.open("wb") as file:
        while True:
            if connection.sock:
                connection.sock.settimeout(_left(deadline))
            if not (block := response.read1(_BLOCK)):
                if response.length:  # of what was announced
                    raise ApiError(f"{url}: it is cut off", code="invalid_url")
                return
            size += len(block)
            if size > max_bytes:
                raise ApiError(f"{url}: it is longer than {format_size(max_bytes)}", code="invalid_url")
            _left(deadline)
            file.write(block)


def _connect(parts: SplitResult, deadline: float) -> http.client.HTTPConnection:
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ApiError(f"{parts.geturl()}: give an http or https URL", code="invalid_url")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = public_address(parts.hostname, port)
    plain = socket.create_connection((address, port), timeout=_left(deadline))
    if parts.scheme == "http":
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = plain
        return connection
    context = ssl.create_default_context()
    secure = http.client.HTTPSConnection(parts.hostname, port, context=context)
    try:
        secure.sock = context.wrap_socket(plain, server_hostname=parts.hostname)
    except BaseException:
        plain.close()
        raise
    return secure


def public_address(host: str, port: int) -> str:
    """The address of a host.

    Raises:
      ApiError: one of its addresses is not public.
    """
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise ApiError(f"there is no host {host}", code="invalid_url") from None
    for address in found:
        ip = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
        if not (ip.is_global and mapped.is_global) or ip.is_multicast:
            raise ApiError(f"{host} is not a public address", code="invalid_url")
    return found[0]

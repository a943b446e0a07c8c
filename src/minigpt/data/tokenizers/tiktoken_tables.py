"""The tables of tiktoken's encodings, from its cache or the network; without either it fails within two seconds."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from minigpt.errors import UserError

TIKTOKEN_NAMES = ("gpt2", "cl100k_base", "o200k_base")
_CONNECT_SECONDS = 1.5
_SILENCE_SECONDS = 10.0


def load_tables(name: str) -> dict[str, Any]:
    """The arguments of one of tiktoken's encodings: `mergeable_ranks` and `special_tokens`.

    Raises:
        UserError: the tables are not cached, and the server does not answer within two seconds or the download fails.
    """
    return _load(name, _download)


def require_tables(name: str) -> None:
    """Check that one of tiktoken's encodings is available, without downloading it.

    Raises:
        UserError: its tables are not cached, and the server does not answer within two seconds.
    """

    class Answered(BaseException):
        """The server for the download answers."""

    def ask(url: str) -> bytes:
        _require_answer(url)
        raise Answered

    try:
        _load(name, ask)
    except Answered:
        return


def _load(name: str, fetch: Callable[[str], bytes]) -> dict[str, Any]:
    import tiktoken.load
    from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

    original = tiktoken.load.read_file
    tiktoken.load.read_file = fetch  # type: ignore[assignment]  # its own has no timeout
    try:
        return ENCODING_CONSTRUCTORS[name]()
    except Exception as error:  # network errors have many types
        raise UserError(
            f"data.tokenizer={name}: tiktoken could not download its tables ({type(error).__name__}); set "
            "TIKTOKEN_CACHE_DIR to a folder that holds them, or use bpe:N or bytes, which need no download"
        ) from None
    finally:
        tiktoken.load.read_file = original


def _download(url: str) -> bytes:
    """The content at a URL. It fails fast if the server does not answer, but allows a slow download."""
    import requests

    _require_answer(url)
    response = requests.get(url, timeout=_SILENCE_SECONDS)
    response.raise_for_status()
    return response.content


def _require_answer(url: str) -> None:
    """Raise OSError unless the server of a URL, or its proxy, answers."""
    import requests

    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    address = urlsplit(requests.utils.prepend_scheme_if_needed(proxy, "http") if proxy else url)
    _require_connection(address.hostname or "", address.port or {"https": 443}.get(address.scheme, 80))


def _require_connection(host: str, port: int) -> None:
    """Raise OSError unless a connection succeeds within _CONNECT_SECONDS."""
    outcome: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
            outcome.put(None)
        except OSError as error:
            outcome.put(error)

    # In a daemon thread, as a DNS lookup has no timeout.
    threading.Thread(target=connect, daemon=True).start()
    try:
        error = outcome.get(timeout=_CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {_CONNECT_SECONDS} seconds") from None
    if error is not None:
        raise error

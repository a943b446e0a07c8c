"""Chat messages -> plain text with roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def render_messages(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Parts of a conversation's text, each with whether it is an answer of the assistant.

    Each message is `ROLE: CONTENT` and a line break. Only content and line break of the assistant's are an answer; the
    role before it is not.

    Args:
        messages: mappings with the strings `role` and `content`, in order.

    Raises:
        ValueError: not a list of such messages.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError("not a list of messages")
    parts = []
    for message in messages:
        role, content = (message.get(key) if isinstance(message, Mapping) else None for key in ("role", "content"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError("a message without the texts 'role' and 'content'")
        parts += [(f"{role}: ", False), (f"{content}\n", role == "assistant")]
    return parts

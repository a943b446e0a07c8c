"""Chat messages -> plain text with roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Parts = list[tuple[str, bool]]
"""A document in parts, each with whether it is an answer."""


def render_messages(messages: Sequence[Mapping[str, Any]]) -> Parts:
    """Parts of a conversation's text.

    Each message is `ROLE: CONTENT` and a line break. Only the content of the assistant's messages is an answer.

    Args:
        messages: mappings with the string `role` and the text `content`, in order. A list of content parts of the type
            `text` is a text too.

    Raises:
        ValueError: not a list of such messages.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError("not a list of messages")
    parts: Parts = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str):
            raise ValueError("a message without the text 'role'")
        parts += [(f"{role}: ", False), (_content(message, role), role == "assistant"), ("\n", False)]
    return parts


def _content(message: Mapping[str, Any], role: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content):
        for part in content:
            if (kind := part.get("type")) != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"a message of {role!r} has a part of type {kind!r}, and only text is read")
        return "".join(part["text"] for part in content)
    calls = "; its tool calls are not read, leave such rows out" if message.get("tool_calls") else ""
    raise ValueError(f"a message of {role!r} without the text 'content'{calls}")

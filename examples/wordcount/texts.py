"""What travels between the front and the workers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Text:
    """Work: a text whose words are to be counted."""

    number: int
    text: str


@dataclass
class Counted:
    """News: it has been done."""

    number: int
    words: int
    mean_length: float

"""Ending a generation with one sentence: HTTP 422 through the API, an error in the page.

The WebUIs catch whatever a script raises and make the picture without it. What they call outside of scripts
is not caught: so the refusal is raised from there.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any

log = logging.getLogger("lib_merge")
SAID = "LoRA Merge made no picture: "
UNPROCESSABLE = 422


class LoraMergeRefusal(Exception):
    """Why no picture is made; the page shows the sentence."""

    def __init__(self, sentence: str) -> None:
        """Refuse in one sentence."""
        super().__init__(sentence)
        self.sentence = sentence

    def __str__(self) -> str:
        """Return the sentence alone."""
        return self.sentence


def refusal(sentence: str) -> LoraMergeRefusal:
    """Return what is raised: FastAPI makes 422 of it, with the sentence as `detail`."""
    return _answer()(sentence)


@functools.cache
def _answer() -> type[LoraMergeRefusal]:
    """Return the exception as FastAPI knows it; made here, since only WebUIs have FastAPI."""
    from fastapi import HTTPException

    class Answer(LoraMergeRefusal, HTTPException):
        """The same for the API."""

        def __init__(self, sentence: str) -> None:
            HTTPException.__init__(self, UNPROCESSABLE, sentence)
            self.sentence = sentence

    Answer.__name__ = Answer.__qualname__ = LoraMergeRefusal.__name__  # the page shows it
    return Answer


def refuse(p: Any, sentence: str) -> None:  # noqa: ANN401
    """Have a generation end with the sentence, before anything is computed.

    Args:
        p: the WebUI's processing object, while scripts may still change it.
        sentence: what is wrong and what to do.
    """
    if not reaches(p):
        comment(p, SAID + sentence)
        return
    log.info("%s%s", SAID, sentence)

    def init(*_: Any, **__: Any) -> None:  # noqa: ANN401
        restore(p)
        raise refusal(sentence)

    init.lora_merge = True  # type: ignore[attr-defined]
    p.init = init


def restore(p: Any) -> None:  # noqa: ANN401
    """Take back what `refuse` set on a processing object that is used again."""
    if getattr(getattr(p, "__dict__", {}).get("init"), "lora_merge", False):
        del p.init


def reaches(p: Any) -> bool:  # noqa: ANN401
    """Tell whether an exception reaches who asked.

    The API always does. reForge and Classic make the page's pictures in a thread that prints exceptions and
    forgets them.
    """
    thread = sys.modules.get("modules_forge.main_thread")
    return bool(getattr(p, "is_api", False)) or thread is None or hasattr(thread, "last_exception")


def comment(p: Any, sentence: str) -> None:  # noqa: ANN401
    """Say a sentence below the picture, once."""
    log.warning("%s", sentence)
    say = getattr(p, "comment", None)
    if callable(say):
        say(sentence)
    elif isinstance(getattr(p, "comments", None), dict):
        p.comments[sentence] = 1

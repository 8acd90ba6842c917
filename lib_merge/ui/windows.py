"""Windows of the page: two have two set-ups, and a reload at any moment finds its jobs again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from lib_merge.ui.desk import Desk, Nothing, operation
from lib_merge.ui.jobs import JobReply
from lib_merge.ui.protocol import About, write
from lib_merge.ui.state import TabState

WindowId = Annotated[str, About("made by the page, up to 64 letters, digits, - and _", example="w-1f3a")]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRequest:
    """Names a window of the page.

    The page keeps `window` where a reload keeps it and another window does not have it (sessionStorage), and
    `browser` where all windows of the browser find it (localStorage).
    """

    window: WindowId
    browser: Annotated[str, About("shared by the windows of one browser", example="b-77c2")]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowReply:
    """What belongs to a window.

    A job whose end nobody has looked at is among `jobs` until `job` was asked for it: its card is still to be
    shown. A job belongs to the window that the request for it named in `asked_in`, which every request of
    the page may carry beside `op` and `id`.
    """

    state: Annotated[dict[str, Any] | None, About("what was set up in it; null in a new window")]
    last: Annotated[
        dict[str, Any] | None,
        About("what another window of the browser used last: to be offered"),
    ]
    jobs: Annotated[list[JobReply], About("of this window: waiting, running, and ended ones unseen")]


@operation("window_open")
def window_open(desk: Desk, request: WindowRequest) -> WindowReply:
    """Return what was set up in a window and the jobs it asked for, after a reload as in a new one."""
    own = desk.windows.of(request.window, request.browser)
    return WindowReply(
        state=own,
        last=desk.windows.last(request.window, request.browser) if own is None else None,
        jobs=[task.reply() for task in desk.jobs.asked_in(request.window)],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowKeepRequest:
    """What is set up in a window."""

    window: WindowId
    browser: Annotated[str, About("shared by the windows of one browser", example="b-77c2")]
    state: TabState


@operation("window_keep")
def window_keep(desk: Desk, request: WindowKeepRequest) -> Nothing:
    """Keep what is set up in a window; a picture that was dropped for the card is not kept."""
    state = replace(request.state, output=replace(request.state.output, preview=None))
    desk.windows.keep(request.window, request.browser, write(state))
    return Nothing()

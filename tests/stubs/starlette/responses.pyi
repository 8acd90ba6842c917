from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from os import PathLike
from typing import Any

class Response:
    status_code: int
    headers: Mapping[str, str]
    body_iterator: AsyncIterator[bytes]
    def __init__(
        self,
        content: Any = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None: ...
    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None: ...

class HTMLResponse(Response): ...
class JSONResponse(Response): ...
class PlainTextResponse(Response): ...

class FileResponse(Response):
    def __init__(
        self,
        path: str | PathLike[str],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None: ...

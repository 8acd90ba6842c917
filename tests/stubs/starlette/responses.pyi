from collections.abc import AsyncIterator, Mapping
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

class HTMLResponse(Response): ...
class JSONResponse(Response): ...

class FileResponse(Response):
    def __init__(
        self,
        path: str | PathLike[str],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None: ...

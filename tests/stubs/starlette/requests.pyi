from collections.abc import AsyncIterator, Mapping
from typing import Any

class URL:
    path: str

class Request:
    app: Any
    method: str
    url: URL
    headers: Mapping[str, str]
    query_params: Mapping[str, str]
    path_params: dict[str, Any]
    cookies: dict[str, str]
    def stream(self) -> AsyncIterator[bytes]: ...
    async def body(self) -> bytes: ...

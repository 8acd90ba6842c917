from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request as Request

_Function = TypeVar("_Function", bound=Callable[..., Any])

class HTTPException(Exception):
    status_code: int
    detail: Any
    def __init__(
        self, status_code: int, detail: Any = None, headers: Mapping[str, str] | None = None
    ) -> None: ...

class _Route:
    path: str

class FastAPI:
    routes: list[_Route]
    openapi: Callable[[], dict[str, Any]]
    def __init__(
        self,
        *,
        docs_url: str | None = "/docs",
        redoc_url: str | None = "/redoc",
        openapi_url: str | None = "/openapi.json",
    ) -> None: ...
    def add_api_route(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        methods: list[str] | None = None,
        name: str | None = None,
        summary: str | None = None,
        description: str | None = None,
        tags: list[str] | None = None,
        responses: dict[int | str, dict[str, Any]] | None = None,
        openapi_extra: dict[str, Any] | None = None,
        include_in_schema: bool = True,
    ) -> None: ...
    def add_middleware(self, middleware_class: type[Any], **options: Any) -> None: ...
    def get(self, path: str) -> Callable[[_Function], _Function]: ...
    def middleware(self, middleware_type: str) -> Callable[[_Function], _Function]: ...

import enum

class SdVersion(enum.Enum):
    Unknown = 1
    SD1 = 2
    SD2 = 3
    SDXL = 4

class NetworkOnDisk:
    name: str
    filename: str
    metadata: dict[str, str]
    alias: str
    hash: str | None
    shorthash: str | None
    is_safetensors: bool
    sd_version: SdVersion | None
    def __init__(self, name: str, filename: str) -> None: ...
    def get_alias(self) -> str: ...
    def read_hash(self) -> None: ...

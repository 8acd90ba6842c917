from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

class StableDiffusionProcessing:
    # a wide class that every script adds to; who uses it says what it reads
    def __getattr__(self, name: str) -> Any: ...
    def __setattr__(self, name: str, value: Any) -> None: ...

class Processed:
    images: list[Image]
    info: str
    infotexts: list[str]
    comments: str
    index_of_first_image: int
    def __init__(
        self,
        p: StableDiffusionProcessing,
        images_list: Sequence[Image],
        seed: int = -1,
        info: str = "",
        subseed: int | None = None,
        all_prompts: list[str] | None = None,
        all_negative_prompts: list[str] | None = None,
        all_seeds: list[int] | None = None,
        all_subseeds: list[int] | None = None,
        index_of_first_image: int = 0,
        infotexts: list[str] | None = None,
        comments: str = "",
    ) -> None: ...

def fix_seed(p: StableDiffusionProcessing) -> None: ...
def process_images(p: StableDiffusionProcessing) -> Processed: ...

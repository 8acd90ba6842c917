from collections.abc import Sequence

from modules.processing import StableDiffusionProcessing
from PIL.Image import Image

class GridAnnotation:
    text: str
    is_active: bool
    def __init__(self, text: str = "", is_active: bool = True) -> None: ...

def image_grid(imgs: Sequence[Image], batch_size: int = 1, rows: int | None = None) -> Image: ...
def draw_grid_annotations(
    im: Image,
    width: int,
    height: int,
    hor_texts: Sequence[Sequence[GridAnnotation]],
    ver_texts: Sequence[Sequence[GridAnnotation]],
    margin: int = 0,
) -> Image: ...
def save_image(
    image: Image,
    path: str,
    basename: str,
    seed: int | None = None,
    prompt: str | None = None,
    extension: str = "png",
    info: str | None = None,
    short_filename: bool = False,
    no_prompt: bool = False,
    grid: bool = False,
    pnginfo_section_name: str = "parameters",
    p: StableDiffusionProcessing | None = None,
    existing_info: dict[str, str] | None = None,
    forced_filename: str | None = None,
    suffix: str = "",
    save_to_dirs: bool | None = None,
) -> tuple[str, str | None]: ...

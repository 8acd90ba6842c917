"""`python -m tests.typescript`: write the types of the wire for the JavaScript."""

from __future__ import annotations

from pathlib import Path

import lib_merge.ui.operations
import lib_merge.webui.compare.panel  # noqa: F401 - registers its operations
from lib_merge.ui.describe import typescript
from lib_merge.ui.desk import OPERATIONS

TYPES = Path(__file__).parents[1] / "javascript" / "lora_merge" / "types.d.ts"


def text() -> str:
    return typescript(OPERATIONS.values())


if __name__ == "__main__":
    TYPES.write_text(text(), encoding="utf-8", newline="\n")

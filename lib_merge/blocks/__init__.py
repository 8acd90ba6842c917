"""Block-weight presets: those we ship, the user's own, and every other tool's file imported."""

from lib_merge.blocks.formats import ImportLine
from lib_merge.blocks.imports import (
    ImportReport,
    NeighbourFile,
    find_preset_files,
    import_file,
    import_presets,
)
from lib_merge.blocks.presets import ANY, Preset, complement, find_preset, preset_names
from lib_merge.blocks.shipped import preset_hint
from lib_merge.blocks.store import PresetStore

__all__ = [
    "ANY",
    "ImportLine",
    "ImportReport",
    "NeighbourFile",
    "Preset",
    "PresetStore",
    "complement",
    "find_preset",
    "find_preset_files",
    "import_file",
    "import_presets",
    "preset_hint",
    "preset_names",
]

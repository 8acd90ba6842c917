"""Block-weight presets: those we ship, the user's own, and every other tool's file imported."""

from lib_merge.presets.find import find_preset, preset_names
from lib_merge.presets.importing import ImportReport, import_file, import_presets
from lib_merge.presets.model import ANY, Preset, complement
from lib_merge.presets.neighbours import Found, find_preset_files
from lib_merge.presets.report import ImportLine
from lib_merge.presets.shipped import preset_hint
from lib_merge.presets.store import PresetStore

__all__ = [
    "ANY",
    "Found",
    "ImportLine",
    "ImportReport",
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

"""What the headers of LoRA files say, kept between two looks at the same files: no header is read twice.

A slider that moves, and the analysis after it, ask for the same files again and again. Nothing here holds a
file open: a kept header is a closed file that is opened when a tensor of it is read, so that everybody may
rename, replace and delete it meanwhile, on Windows too.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lib_merge.adapters import LoraFile, open_lora
from lib_merge.adapters.peft_config import places
from lib_merge.errors import FileFormatError
from lib_merge.files.reader import TensorFile

# Files whose headers are kept; one of SDXL takes about a megabyte.
MOST = 32
# of a file and of what may lie beside it: (device, number, size, time of change), None where there is none
Stamp = tuple[tuple[int, int, int, int] | None, ...]


class ClosedFile(TensorFile):
    """A file whose header is known; opened when a tensor is read."""

    def __init__(self, facts: TensorFile, stamp: Stamp) -> None:
        """Take a file's facts, and what it looked like when they were read."""
        self.path, self.state, self.size = facts.path, facts.state, facts.size
        self.tensors, self.metadata = facts.tensors, facts.metadata
        self._facts, self._stamp = facts, stamp
        self._file: TensorFile | None = None
        self._lock = threading.Lock()

    @property
    def origin(self) -> TensorFile:
        """The facts; see `TensorFile.origin`."""
        return self._facts

    def again(self) -> TensorFile:
        """Return the same facts, closed."""
        return ClosedFile(self._facts, self._stamp)

    def read_many(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return several tensors; see `TensorFile.read_many`.

        Raises:
            FileFormatError: the file is another by now.
        """
        return self._opened().read_many(keys)

    def beginning(self, key: str, count: int) -> tuple[float, ...]:
        """Return the first numbers of a tensor; see `TensorFile.beginning`.

        Raises:
            FileFormatError: the file is another by now.
        """
        return self._opened().beginning(key, count)

    def _opened(self) -> TensorFile:
        with self._lock:
            if self._file is None:
                self._file = self._facts.again()
                if _stamp(self.path) != self._stamp:
                    self._file.close()
                    self._file = None
                    message = f"{self.path.name} was changed meanwhile; try again."
                    raise FileFormatError(message)
            return self._file

    def sha256(self) -> str:
        """Return the sha256; see `TensorFile.sha256`."""
        return self._opened().sha256()

    def check_unchanged(self) -> None:
        """Refuse a file that is another by now; one of which no tensor was read is looked for by its name."""
        (self._file or self._opened()).check_unchanged()

    def close(self) -> None:
        """Release the file, where it was opened."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


class HeaderCache:
    """Opens LoRA files, those it knows without reading anything; safe from several threads.

    Takes the place of `open_lora` wherever a function that opens files is asked for.
    """

    def __init__(self, most: int = MOST) -> None:
        """Keep the headers of at most that many files, those used last."""
        self._most = most
        self._known: OrderedDict[Path, tuple[Stamp, LoraFile]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> LoraFile:
        """Return an opened file of the caller's own, to be closed by him.

        Raises:
            FileFormatError: damaged or not a LoRA.
            ModuleError: key names that do not fit together.
        """
        stamp = _stamp(path)
        with self._lock:
            known = self._known.get(path)
            if known is not None and known[0] == stamp:
                self._known.move_to_end(path)
                return replace(known[1], file=known[1].file.again())
        with open_lora(path) as opened:
            kept = replace(opened, file=ClosedFile(opened.file, stamp))
        if stamp[0] is not None and _stamp(path) == stamp:
            with self._lock:
                self._known[path] = stamp, kept
                while len(self._known) > self._most:
                    self._known.popitem(last=False)
        return replace(kept, file=kept.file.again())


def _stamp(path: Path) -> Stamp:
    return tuple(_look(place) for place in (path, *places(path)))


def _look(path: Path) -> tuple[int, int, int, int] | None:
    try:
        now = path.stat()
    except (OSError, ValueError):
        return None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns

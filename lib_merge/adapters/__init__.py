"""What tensors mean: key styles, module names, families, blocks, and one file per adapter kind."""

from __future__ import annotations

"""Bytes: header checks, lazy reading, atomic writing, hashes."""

from __future__ import annotations

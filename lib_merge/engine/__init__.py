"""The engine: plan → read → combine → compress → write → verify → publish, with progress and cancel."""

from __future__ import annotations

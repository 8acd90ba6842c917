"""Automatic1111, Forge and their relatives: what is theirs (`modules`, `networks`, `backend`, fastapi)
appears only here.
"""

from lib_merge.webui.register import register

__all__ = ["register"]

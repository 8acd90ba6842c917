from contextlib import AbstractContextManager

queue_lock: AbstractContextManager[bool | None]

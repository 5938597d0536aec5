"""The V3 API: extensions, and `io` for nodes."""

from abc import ABC, abstractmethod

from comfy_api.latest import io

__all__ = ["ComfyExtension", "io"]


class ComfyExtension(ABC):
    async def on_load(self) -> None:
        return None

    @abstractmethod
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...

"""The V3 API: extensions, and `io` for nodes."""

from abc import ABC, abstractmethod

from comfy_api.latest import io

__all__ = ["ComfyExtension", "io"]


class ComfyExtension(ABC):
    @abstractmethod
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...

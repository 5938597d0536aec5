"""The pack that ComfyUI finds in custom_nodes; its nodes are in the Python package subjectgen."""

from subjectgen.comfyui.extension import comfy_entrypoint

__all__ = ["comfy_entrypoint"]

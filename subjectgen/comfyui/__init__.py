"""Nodes for ComfyUI. Only `install` can be imported outside of it."""

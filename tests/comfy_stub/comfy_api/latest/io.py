"""Inputs, outputs and schemas of nodes, as data that tests can look at."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class Input:
    """One input; what is particular to its type is in `options`."""

    type = "*"

    def __init__(
        self, id: str, *, tooltip: str | None = None, optional: bool = False, raw_link: bool = False, **options: Any
    ):
        self.id, self.tooltip, self.optional, self.raw_link, self.options = id, tooltip, optional, raw_link, options

    @property
    def is_widget(self) -> bool:
        return self.type in {"STRING", "INT", "FLOAT", "COMBO"}


class Output:
    type = "*"

    def __init__(self, id: str | None = None, *, display_name: str | None = None):
        self.id, self.display_name = id, display_name


class Type:
    Input = Input
    Output = Output


def Custom(io_type: str) -> type[Type]:
    class Own(Type):
        Input = type("Input", (Input,), {"type": io_type})
        Output = type("Output", (Output,), {"type": io_type})

    return Own


class Image(Custom("IMAGE")): ...


class Mask(Custom("MASK")): ...


class String(Custom("STRING")): ...


class Int(Custom("INT")): ...


class Float(Custom("FLOAT")): ...


class Combo(Custom("COMBO")): ...


class MultiType:
    class Input(Input):
        def __init__(self, id: str, types: Sequence[type[Type]], **given: Any):
            super().__init__(id, **given)
            self.type = ",".join(each.Input.type for each in types)


class Autogrow:
    class TemplatePrefix:
        def __init__(self, *, input: Input, prefix: str, min: int = 1, max: int = 10):
            self.input, self.min, self.names = input, min, [f"{prefix}{k}" for k in range(max)]

    class Input(Input):
        type = "COMFY_AUTOGROW_V3"

        def __init__(self, id: str, *, template: "Autogrow.TemplatePrefix"):
            super().__init__(id)
            self.template = template


@dataclass(kw_only=True)
class Schema:
    node_id: str
    display_name: str
    category: str
    description: str = ""
    inputs: Sequence[Input] = ()
    outputs: Sequence[Output] = field(default_factory=list)
    is_output_node: bool = False
    enable_expand: bool = False


class ComfyNode:
    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, *args: Any, **kwargs: Any) -> "NodeOutput":
        raise NotImplementedError


class NodeOutput:
    def __init__(self, *args: Any, ui: dict[str, Any] | None = None, expand: dict[str, Any] | None = None):
        self.args, self.ui, self.expand = args, ui, expand

"""Nodes that a node becomes."""

from typing import Any


class Node:
    def __init__(self, id: str, class_type: str, inputs: dict[str, Any]):
        self.id, self.class_type, self.inputs = id, class_type, inputs

    def out(self, index: int) -> list[Any]:
        return [self.id, index]

    def set_input(self, key: str, value: Any) -> None:
        self.inputs[key] = value


class GraphBuilder:
    def __init__(self) -> None:
        self._nodes: list[Node] = []

    def node(self, class_type: str, **inputs: Any) -> Node:
        self._nodes.append(Node(f"x.{len(self._nodes)}", class_type, inputs))
        return self._nodes[-1]

    def finalize(self) -> dict[str, Any]:
        return {node.id: {"class_type": node.class_type, "inputs": node.inputs} for node in self._nodes}

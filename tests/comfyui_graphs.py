"""Workflows of ComfyUI as data: are they right by the nodes' schemas, and what comes out of them?"""

from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from subjectgen.comfyui.extension import NODES
from subjectgen.weights import find_folder

PACK = find_folder("comfyui_pack")
NAMES = sorted(file.stem for file in (PACK / "api_workflows").glob("*.json"))


class LoadImage(io.ComfyNode):
    """ComfyUI's own, as far as the workflows use it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadImage",
            display_name="",
            category="",
            inputs=[io.String.Input("image")],
            outputs=[io.Image.Output(), io.Custom("MASK").Output()],
        )


class SaveImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [io.Image.Input("images"), io.String.Input("filename_prefix")]
        return io.Schema(node_id="SaveImage", display_name="", category="", inputs=inputs)


def node_classes() -> dict[str, type[io.ComfyNode]]:
    """By the names that workflows use."""
    return {node.define_schema().node_id: node for node in [*NODES, LoadImage, SaveImage]}


def schema_of(class_type: str) -> io.Schema:
    return node_classes()[class_type].define_schema()


def inputs_of(class_type: str) -> dict[str, io.Input]:
    """What a workflow may give to a node, by the names it uses; inputs that grow are many."""
    found: dict[str, io.Input] = {}
    for each in schema_of(class_type).inputs:
        if isinstance(each, io.Autogrow.Input):
            found |= {f"{each.id}.{name}": each.template.input for name in each.template.names}
        else:
            found[each.id] = each
    return found


def required_of(class_type: str) -> set[str]:
    """The names of inputs that a node cannot do without."""
    names = {each.id for each in schema_of(class_type).inputs if not each.optional}
    for each in schema_of(class_type).inputs:
        if isinstance(each, io.Autogrow.Input):
            names -= {each.id}
            names |= {f"{each.id}.{name}" for name in each.template.names[: each.template.min]}
    return names


def api_faults(graph: dict[str, Any]) -> list[str]:
    """What ComfyUI would refuse of a workflow in API form."""
    return [fault for id, node in graph.items() for fault in _node_faults(graph, id, node)]


def _node_faults(graph: dict[str, Any], id: str, node: dict[str, Any]) -> list[str]:
    kind, given = node["class_type"], node["inputs"]
    if kind not in node_classes():
        return [f"{id}: no node {kind}"]
    known = inputs_of(kind)
    faults = [f"{id}: {kind} has no {name}" for name in given.keys() - known.keys()]
    faults += [f"{id}: {kind} lacks {name}" for name in required_of(kind) - given.keys()]
    return faults + [
        f"{id}: {name}={value!r} does not fit"
        for name, value in given.items()
        if name in known and not _fits(graph, known[name], value)
    ]


def _fits(graph: dict[str, Any], known: io.Input, value: Any) -> bool:
    if isinstance(value, list):
        source, slot = value
        outputs = schema_of(graph[source]["class_type"]).outputs if source in graph else []
        return slot < len(outputs) and outputs[slot].type in known.type.split(",")
    if known.type == "COMBO":
        return value in known.options["options"]
    kinds = {"STRING": str, "INT": int, "FLOAT": float}
    low, high = known.options.get("min", value), known.options.get("max", value)
    return known.type in kinds and isinstance(value, kinds[known.type]) and low <= value <= high


def api_of_ui(ui: dict[str, Any]) -> dict[str, Any]:
    """A workflow as the page saves it => as it sends it to the server."""
    links = {link[0]: [str(link[1]), link[2]] for link in ui["links"]}
    return {str(node["id"]): {"class_type": node["type"], "inputs": _ui_inputs(node, links)} for node in ui["nodes"]}


def _ui_inputs(node: dict[str, Any], links: dict[int, list[Any]]) -> dict[str, Any]:
    values = iter(node.get("widgets_values", []))
    inputs: dict[str, Any] = {}
    for each in filter(lambda each: each.is_widget, schema_of(node["type"]).inputs):
        inputs[each.id] = next(values)
        if each.options.get("control_after_generate"):
            next(values)  # "fixed", "randomize", ...: the page's own
    return inputs | {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}


def run(graph: dict[str, Any], pictures: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What reaches SaveImage, one after the other, as ComfyUI runs nodes: in inference mode, each once.

    pictures: what LoadImage finds, by file name.
    """
    outputs: dict[str, tuple[Any, ...]] = {}

    def value(given: Any) -> Any:
        return output(given[0])[given[1]] if isinstance(given, list) else given

    def output(id: str) -> tuple[Any, ...]:
        if id not in outputs:
            outputs[id] = execute(graph[id]["class_type"], graph[id]["inputs"])
        return outputs[id]

    def execute(kind: str, inputs: dict[str, Any]) -> tuple[Any, ...]:
        if kind == "LoadImage":
            return (pictures[inputs["image"]], None)
        links = any(known.raw_link for known in inputs_of(kind).values())
        given = {k: v if links and inputs_of(kind)[k].raw_link else value(v) for k, v in inputs.items()}
        made = node_classes()[kind].execute(**_grown(given))
        if made.expand is None:
            return made.args
        graph.update(made.expand)
        return tuple(value(link) for link in made.args)

    with torch.inference_mode():
        for id in [id for id, node in graph.items() if schema_of(node["class_type"]).is_output_node]:
            output(id)
        return [value(node["inputs"]["images"]) for node in list(graph.values()) if node["class_type"] == "SaveImage"]


def _grown(given: dict[str, Any]) -> dict[str, Any]:
    """{"subjects.subject0": x} => {"subjects": {"subject0": x}}, as ComfyUI hands it to a node."""
    inputs: dict[str, Any] = {}
    for name, value in given.items():
        first, _, rest = name.partition(".")
        if rest:
            inputs.setdefault(first, {})[rest] = value
        else:
            inputs[first] = value
    return inputs


def picture_of(name: str) -> Path:
    """What is shown beside a workflow."""
    return PACK / "example_workflows" / f"{name}.jpg"

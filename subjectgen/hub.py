"""What makes a saved pipeline a repository that others can load: a root `pipeline.py` and a real model card."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import ModelCard, ModelCardData, create_repo, file_exists, upload_folder

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

PIPELINE_FILE = '''"""For `DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`."""

from subjectgen import SubjectPipeline  # noqa: F401
'''
PIPELINE_TAG = "text-to-image"
TAGS = ["subjectgen", "subject-driven-generation", "image-to-image"]
ALWAYS_KEPT = "README.md"  # a card on the Hub may have been written by hand


def write_repository_files(pipeline: "SubjectPipeline", folder: Path) -> None:
    """Write `pipeline.py` and the model card into a folder that `save_pretrained` has filled."""
    (folder / "pipeline.py").write_text(PIPELINE_FILE)
    model_card(pipeline).save(folder / "README.md")
    for config in (folder / "model_index.json", *folder.glob("*/config.json")):
        _forget_origin(config)


def upload(
    folder: Path,
    repo_id: str,
    commit_message: str = "Upload SubjectPipeline",
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload to a repository, new or old; a model card that is there already stays. Returns the commit's URL."""
    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    kept = [ALWAYS_KEPT] if file_exists(repo_id, ALWAYS_KEPT, token=token) else None
    commit = upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=commit_message,
        token=token,
        create_pr=create_pr,
        ignore_patterns=kept,
    )
    return commit.commit_url


def model_card(pipeline: "SubjectPipeline") -> ModelCard:
    """The card: what the checkpoint is, how to use it, what it consists of and what it was set up for."""
    data = ModelCardData(
        library_name="diffusers", pipeline_tag=PIPELINE_TAG, license=pipeline.config["license"], tags=list(TAGS)
    )
    parts = [_introduction(pipeline), _components(pipeline), _settings(pipeline)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _forget_origin(config: Path) -> None:
    """diffusers writes down where each part was loaded from: a path on this machine, of no use on another."""
    settings = json.loads(config.read_text())
    settings.pop("_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _introduction(pipeline: "SubjectPipeline") -> str:
    limit = pipeline.config["max_references"]
    return f"""# Subject-driven generation

A picture of your subject, in the scene you describe: an MLLM reads the prompt and up to {limit} reference images
together, its layers are fused, VAE latents of the references add identity, and a DiT denoises in stages.

```python
from subjectgen import SubjectPipeline

pipe = SubjectPipeline.from_pretrained("path or repo id")
image = pipe("the subject on a beach", "reference.png").images[0]
```

The code is the Python package `subjectgen`. After `import subjectgen`, diffusers finds it by itself:
`DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`."""


def _components(pipeline: "SubjectPipeline") -> str:
    rows = ["| component | class | parameters |", "|---|---|--:|"]
    for name, component in sorted(pipeline.components.items()):
        size = f"{_num_parameters(component):,}" if isinstance(component, torch.nn.Module) else ""
        rows.append(f"| `{name}` | `{type(component).__name__}` | {size} |")
    return "## Components\n\n" + "\n".join(rows)


def _settings(pipeline: "SubjectPipeline") -> str:
    rows = ["| setting | value |", "|---|---|"]
    settings = {name: value for name, value in sorted(pipeline.parameters.items()) if name != "license"}
    rows += [f"| `{name}` | `{value}` |" for name, value in settings.items()]
    return "## Settings\n\n" + "\n".join(rows)


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

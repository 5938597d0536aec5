"""To and from the Hub: files that are all there or a clear error, and what makes a repository that others can load."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard, ModelCardData, create_repo, file_exists, snapshot_download, upload_folder
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError

from subjectgen.memory import LOADING, OutOfMemory, told
from subjectgen.weights import WeightsError

if TYPE_CHECKING:
    from subjectgen.adapter import AdapterConfig
    from subjectgen.pipeline import SubjectPipeline

INDEX = "model_index.json"
FETCH_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
RESTORE = "Save or download it again, or check its name."
FAILURES = (OSError, RuntimeError, ValueError, KeyError, SafetensorError)  # of the loaders of all libraries involved

PIPELINE_FILE = '''"""For `DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`."""

from subjectgen import SubjectPipeline  # noqa: F401
'''
ADAPTER_INTRODUCTION = """# Subject-driven generation: an adapter

A picture of your subject, in the scene you describe. `adapter.safetensors` holds what was trained on top of the public
networks below: the aggregator that fuses the layers of the MLLM, and a LoRA of the DiT.

```python
from subjectgen import SubjectAdapter

SubjectAdapter.load("path or repo id").apply(pipe)  # a SubjectPipeline of the same base
```

The code is the Python package `subjectgen`."""
PIPELINE_TAG = "text-to-image"
TAGS = ["subjectgen", "subject-driven-generation", "image-to-image"]
CARD = "README.md"  # it may have been written by hand, here or on the Hub
WRITTEN_HERE = re.compile(r"\n<!-- Written by subjectgen, sha256 of the above: (\w{64}) -->\n$")
OWN_LICENCES = {  # the Hub has no identifier for them; name -> its text
    "flux-1-dev-non-commercial-license": "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    "qwen-research": "https://huggingface.co/Qwen/Qwen-Image-2.1/blob/main/LICENSE",
}


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Whatever goes wrong while `name` is loaded, as a WeightsError or an OutOfMemory that says what to do."""
    try:
        with told(f"loading '{name}'", LOADING):
            yield
    except OutOfMemory:
        raise
    except GatedRepoError as error:
        raise WeightsError(
            f"'{name}' is gated: expected an account that may read it. Accept its terms at "
            f"https://huggingface.co/{name}, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"'{name}' is not on the Hub, or is private: expected a repository that this account may read. Check its "
            "name, or log in with `hf auth login`."
        ) from error
    except FAILURES as error:
        raise WeightsError(f"'{name}' cannot be loaded: {error}. {RESTORE}") from error


def fetch(
    repo_id: str, files: Sequence[str], revision: str | None = None, token: str | None = None, **options: Any
) -> Path:
    """Download these files (or patterns) of a repository, or find them in the cache. Raises WeightsError.

    options: further ones of `snapshot_download`. Returns the folder of the snapshot.
    """
    with loading(repo_id):
        found = snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(files), **options)
        return Path(found)


def read_index(name: str, expected: str, **options: Any) -> dict[str, Any]:
    """What a folder or repository consists of, before its weights are downloaded or loaded.

    options: of `from_pretrained`. Raises WeightsError unless it is a pipeline of the class `expected`.
    """
    known = {key: options[key] for key in FETCH_OPTIONS if key in options}
    folder = Path(name) if Path(name).is_dir() else fetch(name, [INDEX], **known)
    if not (folder / INDEX).is_file():
        raise WeightsError(f"'{name}' has no {INDEX}: expected a pipeline written by save_pretrained. {RESTORE}")
    index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if (found := index.get("_class_name")) != expected:
        raise WeightsError(
            f"'{name}' is a {found}: expected a {expected}. Give what {expected}.save_pretrained wrote, or the name of "
            "a recipe, which puts public networks together"
        )
    return index


def write_repository_files(pipeline: "SubjectPipeline", folder: Path) -> None:
    """Write `pipeline.py` and the model card into a folder that `save_pretrained` has filled.

    A card that is there stays, unless it is as this library wrote it.
    """
    (folder / "pipeline.py").write_text(PIPELINE_FILE)
    if not (folder / CARD).exists() or _is_written_here(folder / CARD):
        _write_card(str(model_card(pipeline)), folder / CARD)
    configs = [folder / INDEX, *(folder / name / "config.json" for name in pipeline.components)]
    for config in configs:
        if config.is_file():
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
    kept = [CARD] if file_exists(repo_id, CARD, token=token) else None
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
    parts = [_introduction(pipeline), _components(pipeline), _settings(pipeline.parameters)]
    return _card(parts, TAGS, pipeline.config["license"])


def adapter_card(config: "AdapterConfig") -> ModelCard:
    """The card of an adapter: what it is, how to use it, what it was trained on and is set up for."""
    networks = {"transformer": config.transformer, "mllm": config.mllm}
    rows = ["| network | trained with | on the Hub |", "|---|---|---|"]
    rows += [f"| `{name}` | {network} | {network.repo} |" for name, network in networks.items()]
    parts = [ADAPTER_INTRODUCTION, "## Base\n\n" + "\n".join(rows), _settings(config.settings)]
    repos = [network.repo for network in networks.values() if network.repo]
    return _card(parts, [*TAGS, "lora"], config.settings["license"], base_model=repos or None)


def _card(parts: Sequence[str], tags: Sequence[str], licence: str | None, **more: Any) -> ModelCard:
    named: dict[str, Any] = {"license": licence}
    if licence in OWN_LICENCES:
        named = {"license": "other", "license_name": licence, "license_link": OWN_LICENCES[licence]}
    data = ModelCardData(library_name="diffusers", pipeline_tag=PIPELINE_TAG, tags=list(tags), **named, **more)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _write_card(text: str, path: Path) -> None:
    """With a last line, which shows nowhere, by which an altered card is told from one as it was written."""
    mark = f"\n<!-- Written by subjectgen, sha256 of the above: {hashlib.sha256(text.encode()).hexdigest()} -->\n"
    path.write_text(text + mark, encoding="utf-8", newline="\n")


def _is_written_here(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    mark = WRITTEN_HERE.search(text)
    return mark is not None and mark[1] == hashlib.sha256(text[: mark.start()].encode()).hexdigest()


def _forget_origin(config: Path) -> None:
    """diffusers writes down where each part was loaded from: a path on this machine, of no use on another."""
    settings = json.loads(config.read_text())
    settings.pop("_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _introduction(pipeline: "SubjectPipeline") -> str:
    limit = pipeline.config["max_references"]
    fused = "" if pipeline.components["aggregator"] is None else "its layers are fused, "
    return f"""# Subject-driven generation

A picture of your subject, in the scene you describe: an MLLM reads the prompt and up to {limit} reference images
together, {fused}VAE latents of the references add identity, and a DiT denoises in stages.

```python
from subjectgen import SubjectPipeline

pipe = SubjectPipeline.from_pretrained("path or repo id")
image = pipe("image 1 on a green background", "reference.png").images[0]
```

The code is the Python package `subjectgen`. After `import subjectgen`, diffusers finds it by itself:
`DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`."""


def _components(pipeline: "SubjectPipeline") -> str:
    rows = ["| component | class | parameters |", "|---|---|--:|"]
    for name, component in sorted(pipeline.components.items()):
        if component is None:
            continue
        size = f"{_num_parameters(component):,}" if isinstance(component, torch.nn.Module) else ""
        rows.append(f"| `{name}` | `{type(component).__name__}` | {size} |")
    return "## Components\n\n" + "\n".join(rows)


def _settings(settings: Mapping[str, Any]) -> str:
    rows = ["| setting | value |", "|---|---|"]
    rows += [f"| `{name}` | `{value}` |" for name, value in sorted(settings.items()) if name != "license"]
    return "## Settings\n\n" + "\n".join(rows)


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

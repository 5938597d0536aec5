"""GRPO of an MLLM's reasoning: it writes a group of plans for a request, and learns from which of them were better.

TRL's trainer on a LoRA of the decoder (arXiv 2402.03300). Plans are drawn freely, not held to the grammar as by
`pipe.reason`: what is learnt is the MLLM's own chances of a token, and a grammar would draw from others. So writing
the format has a reward of its own. Each reward is normalised within its group before they are added, or that with the
widest spread would drown the others (arXiv 2601.05242).
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainerControl, TrainerState, set_seed
from trl import GRPOConfig, GRPOTrainer

from subjectgen.files import whole_file, whole_folder
from subjectgen.models.mllm.internvl import InternVLReader
from subjectgen.reasoning.instruction import request_to_plan
from subjectgen.references import key_of, read_images
from subjectgen.train.interruption import interruption
from subjectgen.train.report import Tell, report
from subjectgen.train.tasks import Task
from subjectgen.weights import model_hash

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

DECODER = r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj"  # what the LoRA changes
BETA = 0.04  # weight of the divergence from the MLLM as it was: the painter was trained on that one's hidden states
CHECKPOINTS_KEPT = 2
FACTS = "settings.json"  # what a run is of
FIGURES = {"loss": "loss", "reward": "reward", "kl": "kl", "completions/mean_length": "tokens"}  # TRL's name, ours

Scores = Callable[[Sequence[str], Sequence[Any]], list[float]]  # what was written, what it answers => higher is better


@runtime_checkable
class Tasks(Protocol):
    """Endlessly many tasks; a number's is always the same."""

    def __getitem__(self, number: int) -> Task: ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is; only its number of steps may change when it is resumed."""

    steps: int
    group: int = 8  # plans for each request
    requests: int = 4  # a step
    rate: float = 2e-4
    rank: int = 16  # of the LoRA
    max_new_tokens: int = 384
    checkpoint_steps: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ValueError(f"group={self.group}: expected at least 2 plans, which are compared with each other")
        if min(self.steps, self.requests, self.rank, self.max_new_tokens, self.checkpoint_steps) < 1 or self.rate <= 0:
            raise ValueError(f"{self}: expected all but the seed to be greater than 0")


class Reward:
    """One reward as TRL calls it, and logs it: under its own name."""

    def __init__(self, name: str, scores: Scores):
        self.__name__, self._scores = name, scores

    def __call__(self, completions: list[Any], task: list[Task], **_: Any) -> list[float]:
        """TRL gives a completion as a conversation, and further keywords of its own."""
        return self._scores([completion[0]["content"] for completion in completions], task)


class Reporter(TrainerCallback):
    """Tells each step, and stops the trainer, once it has saved, after an interruption."""

    def __init__(self, rewards: Sequence[Reward], tell: Tell, interrupted: Callable[[], bool]):
        names = {f"rewards/{reward.__name__}/mean": reward.__name__ for reward in rewards}
        self._figures, self._tell, self._interrupted = FIGURES | names, tell, interrupted
        self._start = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._interrupted():
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:  # the last log of a run sums it up
            figures = {ours: float(logs[name]) for name, ours in self._figures.items()}
            self._tell(state.global_step / state.max_steps, state.global_step, time.monotonic() - self._start, figures)


def train(
    pipe: "SubjectPipeline",
    tasks: Tasks,
    rewards: Sequence[Reward],
    out: Path,
    settings: Settings,
    resume: bool = False,
) -> None:
    """Train the pipeline's MLLM, which is changed; at the end `out/export` holds it, merged, and its processor.

    A run that comes to no end leaves the MLLM as it was. Raises KeyboardInterrupt after Ctrl-C, when the step under way
    is done and saved; ValueError when the folder holds a run and `resume` is not set, or one of other settings, or the
    MLLM is none that can be trained here; FileNotFoundError where there is no run to resume.
    """
    check_begun(out, resume)
    check_reading(pipe, tasks[0])
    checkpoint = last_checkpoint(out, facts_of(pipe, tasks, rewards, settings))
    step = 0 if checkpoint is None else step_of(checkpoint)
    plans = settings.group * settings.requests
    with given_back(pipe.mllm):
        with report(True, out, "grpo", plans, step, "plans") as tell, interruption() as stopped:
            trainer = trainer_of(pipe, tasks, rewards, out, settings)
            trainer.add_callback(Reporter(rewards, tell, stopped))
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            stop = stopped()
        if stop:
            raise KeyboardInterrupt(f"step {trainer.state.global_step} is saved in {out}; --resume goes on with it")
        trainer.model.merge_and_unload()  # type: ignore[union-attr, operator]
    with whole_folder(out / "export") as folder:
        pipe.mllm.save_pretrained(folder / "mllm")
        pipe.processor.save_pretrained(folder / "processor")


@contextmanager
def given_back(mllm: PreTrainedModel) -> Iterator[None]:
    """Afterwards the MLLM has the modules, modes and settings that it had, whatever TRL and PEFT put in their place.

    Weights stay as they are then: a LoRA changes them when it is merged.
    """
    configs = [each.config for each in mllm.modules() if isinstance(each, PreTrainedModel)]
    held: list[dict[Any, Any]] = [*map(vars, (*mllm.modules(), *configs, mllm.generation_config))]
    held += [each for module in mllm.modules() for each in (module._modules, module._forward_hooks)]
    noted = [(each, dict(each)) for each in held]
    trained = [(weight, weight.requires_grad) for weight in mllm.parameters()]
    try:
        yield
    finally:
        for values, before in noted:
            values.clear()
            values.update(before)
        for weight, needed in trained:
            weight.requires_grad_(needed)


def trainer_of(
    pipe: "SubjectPipeline", tasks: Tasks, rewards: Sequence[Reward], out: Path, settings: Settings
) -> GRPOTrainer:
    """TRL's trainer, which takes the tasks one after another and says nothing itself."""
    on_gpu = pipe.device.type == "cuda"
    set_seed(settings.seed)  # the LoRA begins with random weights
    trainer = GRPOTrainer(
        pipe.mllm,
        list(rewards),  # type: ignore[arg-type]  (an invariant list of a union)
        GRPOConfig(
            str(out / "checkpoints"),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.group,
            gradient_accumulation_steps=settings.requests,
            num_generations=settings.group,
            max_completion_length=settings.max_new_tokens,
            learning_rate=settings.rate,
            lr_scheduler_type="constant",  # so that a run can be made longer
            beta=BETA,
            multi_objective_aggregation="normalize_then_sum",
            shuffle_dataset=False,
            remove_unused_columns=False,
            generation_kwargs={"suppress_tokens": [pipe.processor.image_token_id]},  # it stands for no picture there
            gradient_checkpointing=on_gpu,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            seed=settings.seed,
            save_steps=settings.checkpoint_steps,
            save_total_limit=CHECKPOINTS_KEPT,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=dataset_of(tasks, settings.steps * settings.requests, pipe),
        processing_class=pipe.processor,
        peft_config=LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=DECODER),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def dataset_of(tasks: Tasks, count: int, pipe: "SubjectPipeline") -> Dataset:
    """Tasks as TRL takes them, made when they are asked for; the column `task` goes to the rewards.

    References lie on white squares, as the pipeline reads them: boxes are in percent of these.
    """
    instruction, limits = pipe.config["plan_instruction"], pipe.limits

    def rows(numbers: dict[str, list[int]]) -> dict[str, list[Any]]:
        made = [tasks[number] for number in numbers["number"]]
        words = [request_to_plan(instruction, task.prompt) for task in made]
        return {
            "prompt": [[{"role": "user", "content": each}] for each in words],
            "images": [list(read_images(task.references, limits).images) for task in made],
            "task": made,
        }

    return Dataset.from_dict({"number": list(range(count))}).with_transform(rows)


def check_reading(pipe: "SubjectPipeline", task: Task) -> None:
    """TRL asks in the words of the processor's chat template: they must be those in which the pipeline reasons."""
    reader, _ = pipe.adapters()
    if not isinstance(reader, InternVLReader):
        raise ValueError(
            f"{type(pipe.mllm).__name__} is read in words that are not those of its chat template: expected an "
            "InternVL, such as mini's"
        )
    references = read_images(task.references, pipe.limits).images
    images = [{"type": "image", "image": image} for image in references]
    message = {"role": "user", "content": [*images, {"type": "text", "text": task.prompt}]}
    asked = pipe.processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    text = reader.template(task.prompt, len(task.references))
    ids = pipe.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    pixels, read = asked["pixel_values"], reader.pixel_values(references)
    if asked["input_ids"][0].tolist() != ids or pixels.shape != read.shape or not pixels.allclose(read):
        raise ValueError(
            f"the processor reads {len(pixels)} tiles and {asked['input_ids'].shape[1]} tokens of "
            f"{len(task.references)} references and a request, the pipeline {len(ids)} tokens and one tile each: "
            "expected the same, pixel by pixel. Set processor.image_processor.crop_to_patches = False."
        )


def facts_of(pipe: "SubjectPipeline", tasks: Tasks, rewards: Sequence[Reward], settings: Settings) -> dict[str, Any]:
    """What a run is of: its settings, rewards, the MLLM as it begins, and the first of its tasks."""
    first = tasks[0]
    shown = "".join(key_of(image) for image in first.references)
    return {
        **asdict(settings),
        "rewards": [reward.__name__ for reward in rewards],
        "mllm": model_hash({"mllm": pipe.mllm}),
        "first task": hashlib.sha256(f"{first.prompt}\n{shown}".encode()).hexdigest(),
    }


def check_begun(out: Path, resume: bool) -> None:
    """Raises FileNotFoundError where `--resume` has nothing to go on with, ValueError where a run would be lost."""
    if resume and not (out / FACTS).is_file():
        raise FileNotFoundError(
            f"--resume: {out / FACTS} is not there: expected a run's. Leave --resume out to begin anew, or mend --out"
        )
    if not resume and (out / FACTS).exists():
        raise ValueError(f"{out} holds a run: pass --resume to go on with it, or choose another --out")


def last_checkpoint(out: Path, facts: dict[str, Any]) -> Path | None:
    """Where the run in this folder stands: its last whole checkpoint, None for a new run, whose facts are noted."""
    file = out / FACTS
    if file.exists():
        _check_same_run(out, json.loads(file.read_text()), facts)
    with whole_file(file) as path:
        path.write_text(json.dumps(facts, indent=1))
    whole = [state.parent for state in (out / "checkpoints").glob("checkpoint-*/trainer_state.json")]  # written last
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """checkpoint-12 => 12"""
    return int(checkpoint.name.rpartition("-")[2])


def _check_same_run(out: Path, noted: dict[str, Any], facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if name != "steps" and noted.get(name) != value:
            raise ValueError(
                f"{out} was trained with {name}={noted.get(name)}, this is {name}={value}: expected the same. "
                "Give it again, or choose another --out"
            )

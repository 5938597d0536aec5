"""What GRPO of an MLLM's reasoning is made of, on the emoji world and on photographs, and how good its plans are."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track

from subjectgen.data.render import Renderer
from subjectgen.data.subjects import load_subjects
from subjectgen.files import whole_file
from subjectgen.likeness import PICKSCORE, PICKSCORE_PROCESSOR, Clip, Dino
from subjectgen.reasoning.plan import Plan, PlanError
from subjectgen.train.grpo import Reward, Scores, Settings, check_begun, train
from subjectgen.train.mini import seen_subjects
from subjectgen.train.painted_rewards import DinoReward, Painter, PickReward, RegionReward
from subjectgen.train.rewards import format_reward, obedience_reward, plan_in, subject_reward
from subjectgen.train.tasks import EmojiTask, EmojiTasks, PhotographTasks, Task

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

FORMAT, SUBJECT, OBEDIENCE, PAINTED = "format", "subject", "obedience", "painted"  # as they are logged
BATCH = 20  # plans that are written together when measured
MEASURING = 2611  # seed of tasks that are only measured on; training draws from others


def on_emoji(
    pipe: "SubjectPipeline",
    out: Path,
    settings: Settings,
    *,
    resume: bool = False,
    paint: bool = False,
    measure: int = 0,
    cutouts: Path | None = None,
) -> None:
    """Train on subjects that may be trained on, with exact rewards; raises as `grpo.train`.

    measure: requests that are planned before and after, of seen and of unseen subjects; their scores are written to
    `out/scores.json`.
    """
    check_begun(out, resume)
    seen = seen_subjects(cutouts, pipe.device)
    before = scores_by_split(pipe, seen, measure, cutouts)
    train(pipe, EmojiTasks(seen, settings.seed), emoji_rewards(pipe, seen, paint), out, settings, resume)
    if measure:
        scores = {"before": before, "after": scores_by_split(pipe, seen, measure, cutouts)}
        with whole_file(out / "scores.json") as path:
            path.write_text(json.dumps(scores, indent=1))


def on_photographs(pipe: "SubjectPipeline", out: Path, settings: Settings, data: str, *, resume: bool = False) -> None:
    """Train on the references and prompts of triples, judged by what is painted; raises as `grpo.train`."""
    check_begun(out, resume)
    tasks = PhotographTasks.of(data, pipe.limits.max_references)
    train(pipe, tasks, photograph_rewards(pipe), out, settings, resume)


def emoji_rewards(pipe: "SubjectPipeline", renderer: Renderer, paint: bool) -> list[Reward]:
    """Exact ones, of words; with `paint` of the picture as well."""
    rewards = [
        Reward(FORMAT, each(format_of)),
        Reward(SUBJECT, each(lambda text, task: subject_reward(plan_of(text, task), task.seen))),
        Reward(OBEDIENCE, each(lambda text, task: obedience_reward(plan_of(text, task), task.asked))),
    ]
    return [*rewards, Reward(PAINTED, RegionReward(Painter(pipe), renderer))] if paint else rewards


def photograph_rewards(pipe: "SubjectPipeline") -> list[Reward]:
    """By judges of what is painted, which are downloaded."""
    paint = Painter(pipe)
    dino = Dino.from_pretrained(pipe.device)
    pickscore = Clip.from_pretrained(pipe.device, PICKSCORE, PICKSCORE_PROCESSOR)
    return [
        Reward(FORMAT, each(format_of)),
        Reward(SUBJECT, DinoReward(paint, dino)),
        Reward(OBEDIENCE, PickReward(paint, pickscore)),
    ]


def each(score: Callable[[str, EmojiTask], float]) -> Scores:
    """Scores of texts that do not depend on each other."""
    return lambda texts, tasks: [score(text, task) for text, task in zip(texts, tasks, strict=True)]


def format_of(text: str, task: Task) -> float:
    return format_reward(text, len(task.references))


def plan_of(text: str, task: Task) -> Plan | None:
    return plan_in(text, len(task.references), task.prompt)


def scores_by_split(
    pipe: "SubjectPipeline", seen: Renderer, count: int, cutouts: Path | None
) -> dict[str, dict[str, float]]:
    """Mean rewards on subjects that are trained on and on those that never are; nothing for a count of 0."""
    if not count:
        return {}
    unseen = Renderer(load_subjects(cutouts=cutouts).split(unseen=True), seen.device)
    return {name: measured(pipe, each, count, name) for name, each in (("seen", seen), ("unseen", unseen))}


def measured(pipe: "SubjectPipeline", renderer: Renderer, count: int, name: str) -> dict[str, float]:
    """Mean rewards of the plans that `pipe.reason` makes of requests about these subjects, as users get them."""
    tasks = EmojiTasks(renderer, MEASURING)
    batches = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    scores = [
        each
        for batch in track(batches, f"reasoning, {name}")
        for each in _scores_of_plans(pipe, [tasks[number] for number in batch])
    ]
    return {reward: sum(each[reward] for each in scores) / count for reward in scores[0]}


def _scores_of_plans(pipe: "SubjectPipeline", tasks: Sequence[EmojiTask]) -> list[dict[str, float]]:
    try:
        plans = pipe.reason([task.prompt for task in tasks], [list(task.references) for task in tasks])
    except PlanError as error:
        plans = [each if isinstance(each, Plan) else None for each in error.plans]
    return [_scores_of_plan(*pair) for pair in zip(plans, tasks, strict=True)]


def _scores_of_plan(plan: Plan | None, task: EmojiTask) -> dict[str, float]:
    return {
        FORMAT: float(plan is not None),
        SUBJECT: subject_reward(plan, task.seen),
        OBEDIENCE: obedience_reward(plan, task.asked),
    }

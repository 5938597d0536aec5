"""What GRPO of an MLLM's reasoning is made of, on the emoji world and on photographs, and how good its plans are."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.progress import track

from subjectgen.data.render import Renderer
from subjectgen.reasoning.plan import Plan, PlanError
from subjectgen.train.grpo import Reward, Scores
from subjectgen.train.painted_rewards import DinoReward, Painter, PickReward, RegionReward
from subjectgen.train.rewards import format_reward, obedience_reward, plan_in, subject_reward
from subjectgen.train.tasks import EmojiTask, EmojiTasks, Task

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

FORMAT, SUBJECT, OBEDIENCE, PAINTED = "format", "subject", "obedience", "painted"  # as they are logged
MEASURING = 2611  # seed of tasks that are only measured on; training draws from others


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
    return [
        Reward(FORMAT, each(format_of)),
        Reward(SUBJECT, DinoReward.from_hub(paint, pipe.device)),
        Reward(OBEDIENCE, PickReward.from_hub(paint, pipe.device)),
    ]


def each(score: Callable[[str, EmojiTask], float]) -> Scores:
    """Scores of texts that do not depend on each other."""
    return lambda texts, tasks: [score(text, task) for text, task in zip(texts, tasks, strict=True)]


def format_of(text: str, task: Task) -> float:
    return format_reward(text, len(task.references))


def plan_of(text: str, task: Task) -> Plan | None:
    return plan_in(text, len(task.references), task.prompt)


def measured(pipe: "SubjectPipeline", renderer: Renderer, count: int, name: str) -> dict[str, float]:
    """Mean rewards of the plans that `pipe.reason` makes of requests about these subjects, as users get them."""
    tasks = EmojiTasks(renderer, MEASURING)
    scores = [_scores_of_plan(pipe, tasks[number]) for number in track(range(count), f"reasoning, {name}")]
    return {reward: sum(each[reward] for each in scores) / count for reward in scores[0]}


def _scores_of_plan(pipe: "SubjectPipeline", task: EmojiTask) -> dict[str, float]:
    try:
        plan = pipe.reason(task.prompt, list(task.references))
    except PlanError:
        plan = None
    return {
        FORMAT: float(plan is not None),
        SUBJECT: subject_reward(plan, task.seen),
        OBEDIENCE: obedience_reward(plan, task.asked),
    }

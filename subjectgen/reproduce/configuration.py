"""One file says what is trained, how each row samples and what the paper found: read strictly, into plain records."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from subjectgen.generate.stages import Number, Stage
from subjectgen.models.aggregation import MODES
from subjectgen.pipeline import CONDITIONS
from subjectgen.train.dropout import Dropout
from subjectgen.train.loop import Schedule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

SHIPPED = Path(__file__).with_name("configuration.toml")
GROUPS = ("early", "mid", "late")  # a third of the layers each
TAU, GUIDANCE = (0.95, 0.85), 2.5  # the paper's
PAPER = {"dino_i": "DINO-I", "clip_i": "CLIP-I", "clip_t": "CLIP-T"}


@dataclass(frozen=True, kw_only=True)
class Network:
    """Sizes of the DiT that every row trains."""

    width: int
    head_dim: int
    num_layers: int
    num_single_layers: int
    rope_dims: list[int]  # of a head, for batch, row and column; they add up to head_dim


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """How a phase learns, and what it drops."""

    rate: Number
    warmup: int  # steps
    cooldown: Number
    semantic: Number
    identity: Number
    both: Number
    masked: bool = False

    @property
    def schedule(self) -> Schedule:
        return Schedule(rate=float(self.rate), warmup=self.warmup, cooldown=float(self.cooldown))

    @property
    def dropout(self) -> Dropout:
        return Dropout(semantic=float(self.semantic), identity=float(self.identity), both=float(self.both))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A phase's part of a training: `steps` of it from step `begin` on."""

    name: str
    begin: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained in which way; `phases` are shares of the budget by the phase's name, in order."""

    phases: Mapping[str, Number]
    aggregator: str = "dual"
    layers: str = "all"
    conditions: str = "cached"

    def __post_init__(self):
        choices = (("aggregator", MODES), ("layers", ("all", *GROUPS)), ("conditions", CONDITIONS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")

    def parts(self, steps: int) -> list[Part]:
        """The phases with their steps, which add up to `steps`. Raises ValueError if one has none."""
        ends, total, spent = [0], sum(self.phases.values()), 0.0
        for share in self.phases.values():
            spent += share
            ends.append(round(steps * spent / total))
        parts = [
            Part(name=name, begin=begin, steps=end - begin)
            for name, begin, end in zip(self.phases, ends, ends[1:], strict=False)
        ]
        if any(part.steps < 1 for part in parts):
            raise ValueError(f"steps={steps} leave none for one of {', '.join(self.phases)}: expected more")
        return parts

    def layer_range(self, num_layers: int) -> tuple[int, int]:
        """First and last hidden state that is read: thirds are 0-9, 10-19 and 20-28 of 29."""
        if self.layers == "all":
            return 0, num_layers - 1
        begin, end = (math.ceil(num_layers * (GROUPS.index(self.layers) + k) / len(GROUPS)) for k in (0, 1))
        return begin, end - 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """When the stages of the paper end (sigma), and the scale of guidance."""

    tau: tuple[Number, Number] = TAU
    guidance: Number = GUIDANCE

    def __str__(self) -> str:
        return f"tau{self.tau[0]:g}-{self.tau[1]:g}-cfg{self.guidance:g}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Eq. 5 of the paper: meaning, then both, then identity alone; without those that end where they begin."""
        first, second = self.tau
        stages = (Stage(first, identity=0.0), Stage(second), Stage(0.0, semantic=0.0))
        begins = (1.0, first, second)
        return tuple(stage for stage, begin in zip(stages, begins, strict=True) if stage.until < begin)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    label: str
    training: str
    sampling: Sampling
    paper: Mapping[str, Number] = field(default_factory=dict)

    def result(self, seed: int) -> str:
        """The name of its result; rows that are trained and sampled alike share it."""
        return f"{self.training}-{self.sampling}-seed{seed}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows to be compared."""

    title: str
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """All of it. Raises ValueError for what does not fit together."""

    model: str
    steps: int
    batch_size: int
    num_batches: int
    num_subjects: int
    seeds: list[int]
    num_prompts: int
    num_inference_steps: int
    negative: str
    plotted: str
    network: Network
    phases: Mapping[str, PhaseSettings]
    trainings: Mapping[str, Training]
    tables: Mapping[str, Table]

    def __post_init__(self):
        known = {name for training in self.trainings.values() for name in training.phases}
        used = {row.training for table in self.tables.values() for row in table.rows} | {self.plotted}
        for kind, names, places in (("phase", known, self.phases), ("training", used, self.trainings)):
            for name in sorted(names - places.keys()):
                raise ValueError(f"{kind} '{name}' is not described: expected one of {', '.join(places)}")

    def chosen(self, names: Sequence[str]) -> "Configuration":
        """With some tables only; all if none is named. Raises ValueError for an unknown one."""
        for name in names:
            if name not in self.tables:
                raise ValueError(f"--only '{name}': expected one of {', '.join(self.tables)}")
        return replace(self, tables={name: self.tables[name] for name in names or self.tables})

    @property
    def rows(self) -> list[Row]:
        """All rows of all tables."""
        return [row for table in self.tables.values() for row in table.rows]

    def binding(self) -> dict[str, Any]:
        """What every result of a folder must have in common: all but the tables and the seeds."""
        return {name: value for name, value in asdict(self).items() if name not in ("tables", "seeds", "plotted")}


def read_configuration(path: Path = SHIPPED) -> Configuration:
    """Raises FileNotFoundError without such a file, ValueError for one that is not as expected."""
    if not path.is_file():
        raise FileNotFoundError(f"--config '{path}' is not there: expected a file such as {SHIPPED}")
    try:
        return _configuration(tomllib.loads(path.read_text(encoding="utf-8")))
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}: expected all that {SHIPPED} has") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be used: {error}. Compare it with {SHIPPED}") from error


def _configuration(values: dict[str, Any]) -> Configuration:
    records = {
        "network": _record(Network, values.pop("network")),
        "phases": _each(PhaseSettings, values.pop("phases")),
        "trainings": _each(Training, values.pop("trainings")),
        "tables": {
            name: _record(Table, {**table, "rows": tuple(_row(**row) for row in table["rows"])})
            for name, table in values.pop("tables").items()
        },
    }
    return _record(Configuration, {**values, **records})


def _each(kind: type[T], values: dict[str, dict[str, Any]]) -> dict[str, T]:
    return {name: _record(kind, each) for name, each in values.items()}


def _record(kind: type[T], values: dict[str, Any]) -> T:
    names = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    for name in values:
        if name not in names:
            raise ValueError(f"'{name}' is unknown: expected {', '.join(names)}")
    return kind(**values)


def _row(tau: list[Number] | None = None, guidance: Number = GUIDANCE, **values: Any) -> Row:
    first, second = TAU if tau is None else tau
    return _record(Row, {**values, "sampling": Sampling(tau=(first, second), guidance=guidance)})

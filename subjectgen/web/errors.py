"""What the page tells in words; everything else is a bug, and shows itself in the log."""

from safetensors import SafetensorError

from subjectgen.engine import EngineError
from subjectgen.memory import OutOfMemory
from subjectgen.weights import WeightsError

REFUSALS = (ValueError, OSError, WeightsError, OutOfMemory, EngineError, SafetensorError)

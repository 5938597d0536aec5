"""What a call costs, told before it runs: tokens, steps and passes per stage, and peak memory by stated formulas."""

from subjectgen.estimate.counts import StageEstimate
from subjectgen.estimate.result import Estimate, estimate

__all__ = ["Estimate", "StageEstimate", "estimate"]

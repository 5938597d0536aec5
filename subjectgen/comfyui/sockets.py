"""What travels between our nodes and no others."""

from comfy_api.latest import io

Pipeline = io.Custom("SUBJECTGEN_PIPELINE")
Subjects = io.Custom("SUBJECTGEN_SUBJECTS")
Stages = io.Custom("SUBJECTGEN_STAGES")

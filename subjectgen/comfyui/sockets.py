"""What travels between our nodes and no others."""

from comfy_api.latest import io

Pipeline = io.Custom("SUBJECTGEN_PIPELINE")
Subject = io.Custom("SUBJECTGEN_SUBJECT")
Subjects = io.Custom("SUBJECTGEN_SUBJECTS")
Stages = io.Custom("SUBJECTGEN_STAGES")

"""For `DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)`."""

from subjectgen import SubjectPipeline  # noqa: F401

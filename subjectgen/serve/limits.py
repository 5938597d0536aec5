"""What one request may ask of the server."""

from dataclasses import dataclass

from subjectgen.generate.stages import Number

MiB = 2**20


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Beyond these a request is refused before anything is computed."""

    max_images: int = 10  # pictures
    max_pixels: int = 2048 * 2048  # of a picture that is painted
    max_steps: int = 100
    max_body_bytes: int = 64 * MiB  # of all that is sent
    max_reference_pixels: int = 2**25  # of an image that is sent, once decoded
    body_seconds: Number = 60  # until all of it is sent
    timeout: Number = 600  # seconds until a job is done, with its time in line
    max_subjects: int = 1000  # kept by id; beyond them the least recently used are forgotten

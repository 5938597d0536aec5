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
    max_body_bytes: int = 64 * MiB  # of all that is sent, as a form with images
    max_text_bytes: int = MiB // 4  # of all that is sent otherwise
    max_reference_pixels: int = 2**25  # of an image that is sent, once decoded
    max_reference_ratio: int = 32  # of its longer side to the shorter: a model that keeps it has tokens for both
    max_reference_scans: int = 64  # of a progressive JPEG, each of which goes over all of its pixels
    body_seconds: Number = 60  # until all of it is sent
    timeout: Number = 600  # seconds until a job is done, with its time in line
    max_subjects: int = 1000  # kept by id; beyond them the least recently used are forgotten
    max_subject_pixels: int = 2**28  # of all of these together, a gigabyte at most

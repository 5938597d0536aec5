"""What a judge is asked, in our own words, and how it has to answer."""

import hashlib

SUBJECT = """\
{shown}. Image {picture} was painted by a program that was asked to show {it} in another scene.

Judge only whether image {picture} shows {it}: shape, parts, proportions, colours, texture, marks and writing. Pose, \
viewpoint, size, light, style and surroundings were free to change: a change there is no fault. A subject that is \
missing, doubled or merged with another is a fault.

{answer}"""

PROMPT = """\
Image 1 was painted by a program from this request:
"{prompt}"

Judge only whether image 1 shows what the request says: the things, what they do, their number, colours and materials, \
where they are, the scene and the style. Whether the picture is beautiful does not count.

{answer}"""

ANSWER = """\
Give your reasons in two or three sentences. Then write a last line of its own, in exactly this form:
Score: N
where N is a whole number from 0 (not at all) to {highest} (in every respect)."""


def subject_question(num_references: int, highest: int) -> str:
    """About pictures in this order: the references, then what was painted."""
    several = num_references > 1
    shown = f"Images 1 to {num_references} each show a subject" if several else "Image 1 shows a subject"
    it = f"all {num_references} subjects" if several else "the same subject"
    return SUBJECT.format(shown=shown, picture=num_references + 1, it=it, answer=ANSWER.format(highest=highest))


def prompt_question(prompt: str, highest: int) -> str:
    """About what was painted, without any reference, so that a copy of one earns nothing."""
    return PROMPT.format(prompt=prompt, answer=ANSWER.format(highest=highest))


def questions_hash(highest: int, pattern: str) -> str:
    """sha256 of all wordings, and of the pattern that reads answers: otherwise asked or read, a score is another."""
    wordings = [subject_question(1, highest), subject_question(2, highest), prompt_question("", highest), pattern]
    return hashlib.sha256("\n".join(wordings).encode()).hexdigest()

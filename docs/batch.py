"""Make docs/batch.png: what `subjectgen batch` paints of a small file, from the lines of its manifest."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from subjectgen.evaluate.sheet import captioned_sheet

REFERENCES = Path(__file__).parent.parent / "examples" / "references"
SUBJECTS = ("lady_beetle.png", "pineapple.png", "automobile.png")
PROMPTS = (
    "image 1 on the left, purple stripes behind",
    "image 1 at the top on green hills",
    "a large image 1 in the middle on a plain yellow ground",
    "two of image 1 at the bottom, a teal gradient behind",
)


def main() -> None:
    with TemporaryDirectory() as folder:
        sheet(painted(Path(folder))).save(Path(__file__).with_name("batch.png"))


def painted(folder: Path) -> Path:
    """Every prompt about every subject, on the command line."""
    rows = [{"prompt": prompt, "subjects": str(REFERENCES / name)} for prompt in PROMPTS for name in SUBJECTS]
    (jobs := folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, "-m", "subjectgen", "batch", str(jobs), "--out", str(out := folder / "pictures")]
    subprocess.run(command, check=True)
    return out


def sheet(out: Path) -> Image.Image:
    """The lines of the manifest, as the file had them: a subject, its picture and the prompt."""
    entries = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    rows = [
        (entry["prompt"], [Image.open(REFERENCES / json.loads(entry["subjects"])[0]), Image.open(out / entry["file"])])
        for entry in sorted(entries, key=lambda entry: entry["line"])
    ]
    return captioned_sheet(("subject", "picture"), rows, per_line=len(SUBJECTS))


if __name__ == "__main__":
    main()

"""The page in a real Chromium, on a tiny pipeline: what is uploaded, painted, stopped, refused, saved; who is asked."""

import base64
import inspect
import json
import re
import shutil
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image, ImageChops
from tiny_engine import Gate
from tiny_pipeline import picture, seeded_generators, tiny_pipeline
from typer.testing import CliRunner

from subjectgen import Subject, SubjectEmbeds
from subjectgen.cli import app
from subjectgen.engine import Engine, JobCancelled
from subjectgen.engine.facts import ModelFacts
from subjectgen.png import read_recipe

gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[test-web]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test-web]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found: apt-get install chromium")

from subjectgen.web.examples import EXAMPLES  # noqa: E402  (they need gradio)
from subjectgen.web.launch import check_address, serve, show  # noqa: E402
from subjectgen.web.page import Page, page_of  # noqa: E402
from subjectgen.web.studio import Studio, open_studio  # noqa: E402

QUIET = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update")
COLOURS = ("red", "blue", "green", "gray", "purple", "yellow", "black", "white", "orange")
SECONDS = 120
STEPS = 6


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(num_inference_steps=STEPS, stages="paper")


@pytest.fixture(scope="module")
def gate(pipe):
    """Open, unless a test closes it."""
    gate = Gate(pipe)
    gate.open.set()
    return gate


@pytest.fixture(scope="module")
def asked_hosts():
    """What this process connects to, or would if it knew the address."""
    hosts, connect, resolve = [], socket.socket.connect, socket.getaddrinfo

    def connected(self, address):
        hosts.append(address[0] if isinstance(address, tuple) else "127.0.0.1")
        return connect(self, address)

    def resolved(host, *given, **options):
        hosts.append(host.decode() if isinstance(host, bytes) else host)
        return resolve(host, *given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connected)
        patch.setattr(socket, "getaddrinfo", resolved)
        yield hosts


class Watched(Engine):
    """Remembers its jobs."""

    def __init__(self, load):
        super().__init__(load)
        self.jobs = []

    def submit_all(self, works, **options):
        jobs = super().submit_all(works, **options)
        self.jobs += jobs
        return jobs


@pytest.fixture(scope="module")
def engine(gate):
    with Watched(lambda _: gate) as engine:
        yield engine


@contextmanager
def shown(studio, where=show, **options):
    """The address of a page."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("paint", "keep"):  # generators, which Gradio does not see through the wrapper of type checks
            patch.setattr(Page, name, inspect.unwrap(getattr(Page, name)))
        blocks = page_of(studio)
        yield where(blocks, **options)
        blocks.close()


@pytest.fixture(scope="module")
def studio(engine, pipe):
    return Studio(engine=engine, facts=ModelFacts.of(pipe, "tiny"), pipe=pipe)


@pytest.fixture(scope="module")
def address(studio, asked_hosts, tmp_path_factory):
    """Of the page, started from anywhere; in the end nobody but this machine was asked for anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("anywhere"))
        with shown(studio) as address:
            yield address
    assert set(asked_hosts) <= {"127.0.0.1", "127.0.0.2", "::1", "localhost"}


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *(f"--{flag}" for flag in QUIET)]
        )
        yield browser
        browser.close()


CARRIED = """files => files.reduce((carried, [name, data]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    carried.items.add(new File([bytes], name, {type: "image/png"}));
    return carried;
}, new DataTransfer())"""


@dataclass
class Visit:
    """The page as somebody sees it."""

    page: Any

    def drop(self, *files: Path) -> None:
        """As by a mouse that carries them here."""
        sent = [(file.name, base64.b64encode(file.read_bytes()).decode()) for file in files]
        carried = self.page.evaluate_handle(CARRIED, sent)
        self.page.locator("#references button").first.dispatch_event("drop", {"dataTransfer": carried})

    def upload(self, *files: Path) -> None:
        self.page.locator("#references input[type=file]").first.set_input_files([str(file) for file in files])

    def write(self, prompt: str) -> None:
        self.page.locator("#prompt textarea").fill(prompt)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def says(self, words: str) -> None:
        playwright.expect(self.page.locator("#status")).to_contain_text(words, timeout=SECONDS * 1000)

    def downloaded(self, block: str) -> list[Path]:
        """The files that are offered there."""
        links = self.page.locator(f"{block} a[download]")
        playwright.expect(links.first).to_be_visible(timeout=SECONDS * 1000)
        return [self._download(links.nth(k)) for k in range(links.count())]

    def fits(self) -> bool:
        """Nothing is to be reached by scrolling sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def _download(self, link: Any) -> Path:
        with self.page.expect_download() as download:
            link.click()
        return Path(download.value.path())


@pytest.fixture
def visit(chromium, address):
    with visiting(chromium, address) as visit:
        yield visit


@contextmanager
def visiting(chromium, address):
    """A visit in which the console has no error, and the page asks nobody but its server."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page, errors, urls = context.new_page(), [], []
    page.set_default_timeout(SECONDS * 1000)
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: urls.append(request.url))
    page.goto(address)
    page.locator("#paint").wait_for()
    yield Visit(page)
    context.close()
    assert errors == []
    assert {urlsplit(url).netloc for url in urls if not url.startswith(("data:", "blob:"))} == {
        urlsplit(address).netloc
    }


@pytest.fixture
def files(tmp_path):
    """Two references."""
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        picture(colour).save(path)
    return paths


def close(gate):
    """The device stands still at its next step."""
    gate.reached.clear()
    gate.open.clear()


def seen(element):
    """Where it is on the screen."""
    playwright.expect(element).to_be_visible()
    return element.bounding_box() or seen(element)  # it was drawn anew meanwhile


def assert_same_picture(one, other):
    difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    assert max(high for _, high in difference.getextrema()) <= 1


def test_upload_name_paint_and_see_why(visit, files, pipe):
    visit.upload(*files)
    visit.page.get_by_label("image 2 is called").fill("cup")
    visit.write("the cup on a red ground")
    visit.press("Paint")
    visit.says("2 pictures painted.")
    one, other = [seen(visit.page.locator("#pictures").get_by_text(f"seed {seed}")) for seed in (1, 2)]
    assert one["y"] == other["y"] and one["x"] + one["width"] < other["x"]  # side by side

    pictures = visit.downloaded("#files")
    recipes = [read_recipe(file) for file in pictures]
    assert [recipe["seed"] for recipe in recipes] == ["1", "2"]
    assert {recipe["prompt"] for recipe in recipes} == {"the cup on a red ground"}
    assert {recipe["subjects"] for recipe in recipes} == {'["red.png", "blue.png"]'}
    subjects = [Subject(files[0]), Subject(files[1], name="cup")]
    for file, seed in zip(pictures, (1, 2), strict=True):
        direct = pipe("the cup on a red ground", subjects, generator=seeded_generators(seed))
        assert_same_picture(Image.open(file), direct.images[0])

    visit.page.get_by_text("See why").click()
    why = visit.page.locator("#why")
    playwright.expect(why).to_contain_text("'cup' is image 2")
    drawn = [f"from sigma {a:g} to {b:g} meaning" for a, b in ((1, 0.95), (0.95, 0.85), (0.85, 0))]
    playwright.expect(why.locator("svg")).to_have_attribute("aria-label", re.compile(".*".join(drawn)))
    cells = [row.split("\t") for row in why.locator("table").inner_text().splitlines() if row[:1].isdigit()]
    assert sum(float(row[6] or 0) for row in cells) > 0  # seconds
    told = [[int(cell) for cell in row[1:6]] for row in cells]
    assert told == [
        [each.steps, each.passes, each.noise_tokens, each.semantic_tokens, each.identity_tokens]
        for each in pipe.estimate("the cup on a red ground", subjects).stages
    ]


def test_the_saved_subject_paints_the_same(visit, files, pipe):
    visit.upload(*files)
    visit.page.get_by_label("image 2 is called").wait_for()
    visit.press("Save the subject")
    (file,) = visit.downloaded("#subject")
    saved = pipe("image 1 on red", SubjectEmbeds.load(file), generator=seeded_generators(3)).images[0]
    assert_same_picture(saved, pipe("image 1 on red", files, generator=seeded_generators(3)).images[0])


def test_previews_while_it_paints(visit, gate):
    gate.step = 2
    close(gate)
    visit.write("a cat")
    visit.press("Paint")
    visit.says(f"Step 2 of {STEPS}")
    previews = visit.page.locator("#pictures img")
    playwright.expect(previews).to_have_count(2)
    before = previews.first.get_attribute("src")
    gate.step = 0
    gate.open.set()
    visit.says("2 pictures painted.")
    playwright.expect(previews.first).not_to_have_attribute("src", before)


def test_stop(visit, gate, engine):
    close(gate)
    visit.write("a cat")
    visit.press("Paint")
    assert gate.reached.wait(SECONDS)
    steps = gate.steps
    visit.press("Stop")
    visit.says("Stopped, 0 pictures painted.")
    assert {type(job.future.exception(SECONDS)) for job in engine.jobs[-2:]} == {JobCancelled}
    gate.open.set()
    visit.press("Stop")
    visit.says("Nothing is being painted.")
    visit.press("Paint")
    visit.says("2 pictures painted.")
    assert gate.steps == steps + STEPS  # the device stopped where it was


def test_a_page_that_is_closed_stops_as_well(chromium, address, gate, engine):
    close(gate)
    page = chromium.new_page()
    page.goto(address)
    page.locator("#prompt textarea").fill("a cat")
    page.locator("#paint").click()
    assert gate.reached.wait(SECONDS)
    page.close()
    assert {type(job.future.exception(SECONDS)) for job in engine.jobs[-2:]} == {JobCancelled}
    gate.open.set()


def test_one_to_eight_references_are_dropped(chromium, tmp_path):
    pipe = tiny_pipeline(num_inference_steps=STEPS, max_references=8)
    paths = [tmp_path / f"{colour}.png" for colour in COLOURS]
    for path in paths:
        picture(path.stem).save(path)
    with (
        Engine(lambda _: pipe) as engine,
        shown(Studio(engine=engine, facts=ModelFacts.of(pipe, "tiny"), pipe=pipe)) as address,
        visiting(chromium, address) as visit,
    ):
        visit.drop(*paths[:8])
        visit.page.get_by_label("image 8 is called").fill("cup")
        visit.write("image 1 and the cup")
        visit.press("Paint")
        visit.says("2 pictures painted.")
        recipe = read_recipe(visit.downloaded("#files")[0])
        assert recipe["subjects"] == str([path.name for path in paths[:8]]).replace("'", '"')
        visit.upload(paths[8])
        visit.says("9 references")


def test_a_name_goes_with_its_picture(visit, files):
    visit.upload(*files)
    visit.page.get_by_label("image 2 is called").fill("cup")
    visit.page.locator("#references").get_by_label("Delete image").first.click(force=True)  # shown to a mouse above it
    playwright.expect(visit.page.get_by_label("image 1 is called")).to_have_value("cup")
    playwright.expect(visit.page.get_by_label("image 2 is called")).to_be_hidden()


def test_a_broken_file_is_told(visit, files):
    files[0].write_bytes(files[0].read_bytes()[:60])
    visit.upload(files[0])
    visit.says("corrupt or cut off")
    visit.write("a cat")
    visit.press("Paint")
    visit.says("red.png")
    playwright.expect(visit.page.get_by_role("alert")).to_contain_text("corrupt or cut off")


def test_what_is_told_is_text(visit):
    visit.write("image 9 <img src=x onerror=alert(1)>")
    visit.press("Paint")
    visit.says("image 9")
    assert visit.page.locator("#status img").count() == 0


def test_presets_move_the_dial_and_the_dial_draws_the_curve(visit):
    curve, dial = visit.page.locator("#curve svg"), visit.page.locator("#dial input[type=range]")
    visit.page.get_by_role("radio", name="free").check()
    playwright.expect(dial).to_have_value("0.85")
    playwright.expect(curve).to_have_attribute("aria-label", re.compile("from sigma 1 to 0.85 .*identity 0;"))
    dial.focus()
    visit.page.keyboard.press("ArrowLeft")
    playwright.expect(visit.page.get_by_role("radio", name="dial")).to_be_checked()
    playwright.expect(curve).to_have_attribute("aria-label", re.compile("from sigma 1 to 0.8 .*identity 0;"))


def test_examples_fill_the_form(visit):
    visit.press("image 1 on the left and image 2 on the right on a teal ground")
    playwright.expect(visit.page.locator("#references img")).to_have_count(2)
    playwright.expect(visit.page.get_by_label("image 2 is called")).to_be_visible()
    visit.press("Paint")
    visit.says("2 pictures painted.")


@pytest.fixture(scope="module")
def mini():
    studio = open_studio("mini", ["cpu"])
    with studio.engine, shown(studio) as address:
        yield address


def test_files_are_chosen_by_keyboard(visit, files):
    visit.page.on("filechooser", lambda chooser: chooser.set_files([str(file) for file in files]))
    upload = visit.page.locator("#references").get_by_role("button", name="Click to upload").first
    for _ in range(100):  # the page is drawn anew while it opens, and forgets where it was
        visit.page.keyboard.press("Tab")
        if upload.evaluate("button => button === document.activeElement"):
            visit.page.keyboard.press("Enter")
            visit.page.wait_for_timeout(1000)
        if visit.page.locator("#references img").count() == len(files):
            break
    playwright.expect(visit.page.locator("#references img")).to_have_count(2)


@pytest.mark.slow
@pytest.mark.parametrize(("names", "prompt"), EXAMPLES)
def test_examples_work_on_mini(chromium, mini, names, prompt):
    with visiting(chromium, mini) as visit:
        visit.press(prompt)
        playwright.expect(visit.page.locator("#references img")).to_have_count(len(names))
        visit.press("Paint")
        visit.says("2 pictures painted.")
        recipe = read_recipe(visit.downloaded("#files")[0])
    assert (recipe["prompt"], recipe["model"]) == (prompt, "mini")
    assert json.loads(recipe["subjects"]) == [f"{name}.png" for name in names]


def test_by_keyboard(visit):
    """Everything is reached by Tab, Enter in the prompt paints and opens the reasons."""
    reached, keyboard = set(), visit.page.keyboard
    ids = ["references", "prompt", "examples", "stages", "dial", "paint", "stop", "see-why", "keep"]
    for _ in range(40):
        keyboard.press("Tab")
        reached |= set(
            visit.page.evaluate(
                "ids => ids.filter(id => document.querySelector(`#${id}:focus-within, #${id}:focus`))", ids
            )
        )
        if reached == set(ids):
            break
    assert reached == set(ids)
    visit.page.locator("#prompt textarea").focus()
    keyboard.type("a cat")
    keyboard.press("Enter")
    visit.says("2 pictures painted.")
    visit.page.locator("#see-why button").first.focus()
    keyboard.press("Enter")
    playwright.expect(visit.page.locator("#why table")).to_be_visible()


def test_on_a_telephone(visit, files):
    visit.page.set_viewport_size({"width": 390, "height": 844})
    assert visit.fits()
    visit.upload(*files)
    parts = ("label", ".icon-button-wrapper", ".thumbnail-item")
    label, icons, picture = (seen(visit.page.locator(f"#references {part}").first) for part in parts)
    assert label["x"] + label["width"] <= icons["x"]
    assert label["y"] + label["height"] <= picture["y"]
    visit.write("image 1 and image 2")
    visit.press("Paint")
    visit.says("2 pictures painted.")
    visit.page.get_by_text("See why").click()
    visit.page.locator("#why table").wait_for()
    assert visit.fits()


def test_other_names_of_this_machine_are_not_answered(address):
    assert httpx.get(address, headers={"Host": "page.of.others"}).status_code == 421
    assert httpx.get(address).status_code == 200


def test_pages_of_others_leave_no_files(address):
    for origin, status in (("http://page.of.others", 403), ("null", 403), (address.rstrip("/"), 200)):
        sent = httpx.post(f"{address}gradio_api/upload", files={"files": b"a"}, headers={"Origin": origin})
        assert sent.status_code == status


@pytest.mark.parametrize("host", ["::1", "127.0.0.2"])
def test_every_address_of_this_machine_alone(studio, host):
    with shown(studio, host=host) as address:
        assert httpx.get(address).status_code == 200


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "examples/../pyproject.toml"])
def test_files_of_the_machine_are_not_shown(address, path):
    """Neither by their address nor as a reference or a saved subject."""
    assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for fields in ({"references": [{"image": file, "caption": None}]}, {"saved": file}):
        assert "error" in called(address, **fields)


@pytest.mark.parametrize("fields", [{"pictures": 9}, {"steps": 101}, {"seed": -1}, {"stages": "slow"}, {"dial": 2}])
def test_no_more_than_the_form_allows(address, engine, fields):
    number = len(engine.jobs)
    assert "error" in called(address, **fields)
    assert len(engine.jobs) == number


def called(address, **fields):
    """What the page's own interface for programs answers, in lines of events."""
    values = {
        "references": None, "prompt": "a cat", "stages": "faithful", "dial": 1, "pictures": 1, "seed": 1, "size": "",
        "steps": 1, "guidance_scale": 1, "negative_prompt": "", "saved": None, **dict.fromkeys(range(3), ""), **fields,
    }  # fmt: skip
    call = f"{address}gradio_api/call/paint"
    asked = httpx.post(call, json={"data": list(values.values())}, timeout=SECONDS)
    if asked.status_code != 200:
        return "error"
    return httpx.get(f"{call}/{asked.json()['event_id']}", timeout=SECONDS).text


def test_a_call_by_a_program(address):
    assert "1 picture painted." in called(address)


def test_a_page_with_a_password_shows_nothing_without(studio):
    with shown(studio, password="long-enough-for-it") as address:
        assert httpx.get(f"{address}config").status_code == 401
        assert EXAMPLES[0][1] not in httpx.get(address).text
        with httpx.Client(base_url=address) as client:
            for password, status in (("wrong-but-as-long", 400), ("long-enough-for-it", 200)):
                login = {"username": "subjectgen", "password": password}
                assert client.post("login", data=login).status_code == status
            assert client.get("config").status_code == 200


def test_a_space_answers_by_any_name(studio):
    """As `spaces/app.py` shows its page."""
    with shown(studio, where=serve, to_all=True) as address:
        assert httpx.get(address, headers={"Host": "someone-subjectgen.hf.space"}).status_code == 200


def test_other_machines_need_a_password():
    with pytest.raises(ValueError, match="no password"):
        check_address("0.0.0.0", None)
    with pytest.raises(ValueError, match="expected 12"):
        check_address("0.0.0.0", "short")
    check_address("0.0.0.0", "long-enough-for-it")
    check_address("127.0.0.1", None)


def test_the_command_refuses_before_it_loads(monkeypatch):
    monkeypatch.delenv("SUBJECTGEN_WEB_PASSWORD", raising=False)
    refusal = CliRunner().invoke(app, ["web", "--host", "0.0.0.0", "--model", "nowhere"])
    assert refusal.exit_code == 2 and "Set SUBJECTGEN_WEB_PASSWORD" in " ".join(refusal.output.split())

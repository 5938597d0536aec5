"""The server: OpenAI's own client works with it; nothing that is sent breaks it; who waits, goes away or is refused."""

import base64
import ctypes
import json
import logging
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tiny_engine import Gate, file_of, held, serving
from tiny_pipeline import picture, seeded_generators, tiny_pipeline
from typer.testing import CliRunner

from subjectgen.cli import app
from subjectgen.cli.serve import _range_of
from subjectgen.engine.facts import ModelFacts
from subjectgen.serve.guard import check_address, check_port
from subjectgen.serve.limits import RequestLimits
from subjectgen.serve.uploads import seen

RED, BLUE = picture("red"), picture("blue", (30, 40))
KEY = "a-key-of-enough-letters"
GENERATIONS, EDITS, SUBJECTS = "/v1/images/generations", "/v1/images/edits", "/v1/subjects"


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def server(pipe):
    with serving(pipe, RequestLimits(max_images=3, max_steps=20, max_pixels=96 * 96)) as (engine, url):
        yield engine, url


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server[1], timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def painter(server):
    """OpenAI's own client."""
    return openai.OpenAI(api_key="none", base_url=f"{server[1]}/v1", max_retries=0)


def files(*pictures):
    return [("image[]", (f"{k}.png", file_of(each))) for k, each in enumerate(pictures)]


def image_of(data):
    return Image.open(BytesIO(base64.b64decode(data)))


def assert_same_picture(one, other):
    assert one.size == other.size
    assert max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)) <= 1


def refused(answer, status, words):
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"]


class TestOpenAi:
    def test_generations(self, painter, pipe):
        answer = painter.images.generate(model="tiny", prompt="a cat", n=2, size="96x48", extra_body={"seed": 5})
        alone = pipe(["a cat"] * 2, width=96, height=48, generator=seeded_generators(5, 6)).images
        for one, other in zip(answer.data, alone, strict=True):
            assert_same_picture(image_of(one.b64_json), other)
        assert [one.seed for one in answer.data] == [5, 6]
        assert answer.size == "96x48"

    def test_edits_of_several_images(self, painter, pipe):
        images = [("1.png", file_of(RED)), ("2.webp", file_of(BLUE, "WEBP"))]
        answer = painter.images.edit(image=images, prompt="image 2 and image 1", extra_body={"seed": 1, "steps": 2})
        webp = Image.open(BytesIO(images[1][1]))
        (alone,) = pipe(
            "image 2 and image 1", [RED, webp], num_inference_steps=2, generator=seeded_generators(1)
        ).images
        assert_same_picture(image_of(answer.data[0].b64_json), alone)

    def test_edits_of_one_image_in_another_format(self, painter):
        answer = painter.images.edit(image=BytesIO(file_of(RED)), prompt="image 1", output_format="jpeg")
        assert image_of(answer.data[0].b64_json).format == "JPEG"

    def test_stream(self, painter, pipe):
        events = list(painter.images.generate(prompt="a cat", stream=True, partial_images=1, extra_body={"seed": 7}))
        kinds = [event.type.removeprefix("image_generation.") for event in events if getattr(event, "step", 1)]
        assert kinds == ["progress"] * 2 + ["partial_image"] + ["progress"] * 2 + ["completed"]
        assert [event.step for event in events if getattr(event, "step", 0)] == [1, 2, 3, 4]
        (alone,) = pipe("a cat", generator=seeded_generators(7)).images
        assert_same_picture(image_of(events[-1].b64_json), alone)

    def test_errors_are_its_own(self, painter):
        with pytest.raises(openai.BadRequestError, match="model 'dall-e-3' is not here: expected 'tiny'"):
            painter.images.generate(model="dall-e-3", prompt="a cat")
        with pytest.raises(openai.APIError, match="image 2"):
            list(painter.images.edit(image=BytesIO(file_of(RED)), prompt="image 2", stream=True))

    def test_models(self, painter):
        assert [model.id for model in painter.models.list()] == ["tiny"]


class TestPictures:
    def test_remember_how_they_were_made(self, client):
        answer = client.post(GENERATIONS, json={"prompt": "a cat", "seed": 3, "stages": "free", "negative_prompt": "b"})
        recipe = image_of(answer.json()["data"][0]["b64_json"]).text
        wanted = {"prompt": "a cat", "seed": "3", "stages": "free", "steps": "4", "negative_prompt": "b"}
        assert wanted.items() <= recipe.items()

    def test_own_stages(self, client):
        stages = [{"until": 0.5, "identity": 0}, {"until": 0, "guidance": 2}]
        assert client.post(GENERATIONS, json={"prompt": "a cat", "stages": stages}).status_code == 200

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            ({"prompt": ""}, "prompt: "),
            ({"prompt": " "}, "prompt is empty"),
            ({"prompt": "a" * 8001}, "8000"),
            ({"n": 4}, "n is 4: expected 3 at most"),
            ({"n": 0}, "n: "),
            ({"steps": 21}, "steps is 21: expected 20 at most"),
            ({"size": "96x112"}, "pixels is 10752: expected 9216 at most"),
            ({"size": "50x50"}, "nearest sizes are 48x48"),
            ({"size": "big"}, "size: "),
            ({"seed": -1}, "seed: "),
            ({"seed": 2**63}, "seed: "),
            ({"stages": "slow"}, "paper, free, faithful"),
            ({"stages": [{"until": 0.5}]}, "expected 0"),
            ({"stages": [{"until": 1 - k / 200} for k in range(1, 201)]}, "100 items"),
            ({"guidance_scale": 1e9}, "guidance_scale: "),
            ({"stages": [{"until": 0, "guidance": 1e9}]}, "guidance: "),
            ({"response_format": "url"}, "response_format: "),
            ({"quality": "high"}, "quality: "),
            ({"prompts": 1}, "prompts: "),
            ({"prompt": "image 1"}, "image 1"),
        ],
    )
    def test_refused(self, client, wrong, words):
        refused(client.post(GENERATIONS, json={"prompt": "a cat", **wrong}), 400, words)

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"prompt": "\\ud800"}', b'{"seed": ' + b"9" * 5000 + b"}"]
    )
    def test_what_is_no_json(self, client, body):
        answer = client.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["message"]


def png_of(width, height):
    """A small file whose header says that it is large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_of_scans(number):
    """A small file that goes over its picture so often."""
    RED.save(file := BytesIO(), "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (number - data.count(b"\xff\xda")) + data[-2:]


class TestUploads:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "image 1 cannot be read"),
            (b"#!/bin/sh", "image 1 cannot be read"),
            (file_of(RED)[:-30], "image 1 cannot be read"),
            (file_of(RED, "TIFF"), "expected a whole PNG, JPEG, WEBP"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image 1 cannot be read"),
            (png_of(6000, 6000), "6000x6000 pixels: expected 33554432 at most"),
            (png_of(60000, 60000), "image 1 cannot be read"),
            (png_of(3300, 100), "one side to be at most 32 times the other"),
            (jpeg_of_scans(65), "scans: expected 64 at most"),
        ],
    )
    def test_what_is_no_picture(self, client, data, words):
        answer = client.post(EDITS, data={"prompt": "image 1"}, files={"image": ("a.png", data)})
        refused(answer, 400, words)
        assert "object at" not in answer.text  # and where in memory

    def test_names_of_files_mean_nothing(self, client):
        sent = {"image": ("../../../etc/passwd\0.png", file_of(RED), "text/html")}
        assert client.post(EDITS, data={"prompt": "image 1"}, files=sent).status_code == 200

    @pytest.mark.parametrize(
        ("sent", "words"),
        [
            ({"data": {"prompt": "a"}, "files": files(RED, RED, RED, RED)}, "at most 3"),
            ({"data": {"prompt": "a"}, "files": files(*[RED] * 17)}, "Too many files"),
            ({"data": {"prompt": "a"}, "files": {"mask": ("m.png", b"")}}, "'mask': expected files as 'image'"),
            ({"data": {"prompt": "a", "image": "x"}, "files": files(RED)}, "'image': expected files"),
            ({"data": {"prompt": ["a", "b"]}, "files": files(RED)}, "'prompt' comes twice"),
            ({"data": {"prompt": "a", **{f"x{k}": "" for k in range(40)}}, "files": files(RED)}, "Too many fields"),
            ({"data": {"prompt": "a" * 100_000}, "files": files(RED)}, "Part exceeded"),
            ({"data": {"prompt": "a", "n": "two"}, "files": files(RED)}, "n: "),
            ({"data": {"prompt": "a", "mode": "x"}, "files": files(RED)}, "mode: "),
        ],
    )
    def test_refused(self, client, sent, words):
        refused(client.post(EDITS, **sent), 400, words)

    def test_no_image(self, client):
        headers = {"content-type": "multipart/form-data; boundary=b"}
        body = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--b--\r\n'
        refused(client.post(EDITS, content=body, headers=headers), 400, "no image")

    @pytest.mark.parametrize("body", [b"", b"--b", b"--b\r\n\r\n", b"--b\r\nContent-Disposition: form-data\r\n\r\nx"])
    def test_what_is_no_form(self, client, body):
        answer = client.post(EDITS, content=body, headers={"content-type": "multipart/form-data; boundary=b"})
        assert answer.status_code == 400
        assert client.post(EDITS, content=body, headers={"content-type": "multipart/form-data"}).status_code == 400
        refused(client.post(EDITS, json={"prompt": "a"}), 415, "multipart/form-data")

    def test_a_jpeg_in_several_scans(self, client):
        sent = {"image": ("a.jpeg", jpeg_of_scans(20))}
        assert client.post(EDITS, data={"prompt": "image 1"}, files=sent).status_code == 200

    @pytest.mark.parametrize("headers", [b"X: " + b"y" * 2**20, b"\r\n".join([b"X: y"] * 2**17)], ids=["long", "many"])
    def test_headers_of_a_part_without_end(self, client, headers):
        """Older releases of python-multipart stop the server for a minute with the largest body of these."""
        body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n' + headers
        answer = client.post(EDITS, content=body, headers={"content-type": "multipart/form-data; boundary=b"})
        refused(answer, 400, "")

    def test_no_more_is_kept_of_a_large_picture_than_the_model_sees(self, client, pipe):
        large = RED.resize((1600, 1200))
        assert seen(large, ModelFacts.of(pipe, "tiny")).size == (32, 32)
        answer = client.post(EDITS, data={"prompt": "image 1", "seed": 1}, files=files(large))
        (alone,) = pipe("image 1", large, generator=seeded_generators(1)).images
        assert_same_picture(image_of(answer.json()["data"][0]["b64_json"]), alone)


class TestSubjects:
    def test_encoded_once_and_used_by_id(self, server, client, pipe):
        before = server[0].state.subjects_encoded
        purple = picture("purple")
        ids = [client.post(SUBJECTS, files=files(purple)).json()["id"] for _ in range(2)]
        assert ids[0] == ids[1]
        answer = client.post(GENERATIONS, json={"prompt": "image 1 on red", "subjects": ids[:1], "seed": 2})
        (alone,) = pipe("image 1 on red", purple, generator=seeded_generators(2)).images
        assert_same_picture(image_of(answer.json()["data"][0]["b64_json"]), alone)
        assert server[0].state.subjects_encoded == before + 1

    def test_several_and_named(self, client, pipe):
        shoe = client.post(SUBJECTS, files=files(RED), data={"name": "shoe"}).json()
        pair = client.post(SUBJECTS, files=files(BLUE, RED)).json()
        assert (shoe["num_references"], pair["num_references"]) == (1, 2)
        assert client.get(f"{SUBJECTS}/{pair['id']}").json() == pair
        answer = client.post(
            GENERATIONS, json={"prompt": "the shoe and image 2", "subjects": [shoe["id"], pair["id"]], "seed": 2}
        )
        named = "the shoe of image 1 and image 2"
        (alone,) = pipe(named, [RED, BLUE, RED], generator=seeded_generators(2)).images
        assert_same_picture(image_of(answer.json()["data"][0]["b64_json"]), alone)

    def test_forgotten(self, client):
        one = client.post(SUBJECTS, files=files(picture("gray"))).json()["id"]
        assert client.delete(f"{SUBJECTS}/{one}").status_code == 204
        refused(client.delete(f"{SUBJECTS}/{one}"), 404, "POST /v1/subjects")
        refused(client.post(GENERATIONS, json={"prompt": "a", "subjects": [one]}), 404, one)

    @pytest.mark.parametrize("data", [{"name": ["a", "b"]}, {"names": "a"}])
    def test_refused(self, client, data):
        refused(client.post(SUBJECTS, files=files(RED), data=data), 400, "for each a 'name'")

    def test_a_name_that_is_none(self, client):
        refused(client.post(SUBJECTS, files=files(RED), data={"name": "image 2"}), 400, "ends in what a prompt")

    def test_a_name_that_is_too_long(self, client):
        refused(client.post(SUBJECTS, files=files(RED), data={"name": "a" * 201}), 400, "longer than 200 characters")

    @pytest.mark.parametrize("limits", [{"max_subjects": 1}, {"max_subject_pixels": 1500}])
    def test_the_least_recently_used_are_forgotten(self, pipe, limits):
        with serving(pipe, RequestLimits(**limits)) as (_, url):
            ids = [httpx.post(url + SUBJECTS, files=files(each)).json()["id"] for each in (RED, BLUE)]
            assert [httpx.get(f"{url}{SUBJECTS}/{each}").status_code for each in ids] == [404, 200]


def stream(url, **asked):
    """Events of a streamed answer."""
    with httpx.stream("POST", url + GENERATIONS, json={"prompt": "a", "stream": True, **asked}, timeout=30) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


class TestStopping:
    def test_cancel_by_id(self, pipe):
        with serving(gate := Gate(pipe)) as (_, url):
            events = stream(url)
            job = next(events)["job"]
            assert gate.reached.wait(20)
            assert [each["id"] for each in httpx.get(f"{url}/v1/jobs").json()] == [job]
            assert httpx.delete(f"{url}/v1/jobs/{job}").status_code == 204
            assert list(events)[-1]["error"]["code"] == "JobCancelled"
            refused(httpx.get(f"{url}/v1/jobs/{job}"), 404, job)
            gate.open.set()
        assert gate.steps == 1

    @pytest.mark.parametrize("streamed", [True, False])
    def test_who_goes_away_cancels(self, pipe, streamed):
        with serving(gate := Gate(pipe)) as (engine, url):
            with pytest.raises(httpx.ReadTimeout):
                list(httpx.post(url + GENERATIONS, json={"prompt": "a", "stream": streamed}, timeout=0.5).iter_lines())
            assert gate.reached.wait(20)
            gate.open.set()
            while engine.state.running:
                time.sleep(0.01)
        assert gate.steps < 4


class TestLine:
    def test_full(self, pipe):
        with serving(gate := Gate(pipe), max_waiting=2) as (engine, url), ThreadPoolExecutor() as threads:
            held(engine, gate)
            asked = {"prompt": "a", "n": 2}
            accepted = threads.submit(httpx.post, url + GENERATIONS, json=asked, timeout=30)
            while engine.state.waiting < 2:
                time.sleep(0.01)
            answer = httpx.post(url + GENERATIONS, json=asked)
            refused(answer, 429, "2 jobs are waiting")
            assert int(answer.headers["retry-after"]) >= 1
            gate.open.set()
            assert len(accepted.result().json()["data"]) == 2

    def test_more_than_could_ever_wait(self, pipe):
        with serving(pipe, max_waiting=2) as (_, url):
            refused(httpx.post(url + GENERATIONS, json={"prompt": "a", "n": 3}), 400, "expected 2 at most")

    def test_requests_of_equal_shape_are_painted_together(self, pipe):
        with serving(gate := Gate(pipe)) as (engine, url), ThreadPoolExecutor() as threads:
            held(engine, gate)
            asked = [{"prompt": "a"}, {"prompt": "b", "size": "48x48"}, {"prompt": "c", "seed": 1}]
            answers = [threads.submit(httpx.post, url + GENERATIONS, json=each, timeout=30) for each in asked]
            while engine.state.waiting < 3:
                time.sleep(0.01)
            gate.open.set()
            assert [each.result().status_code for each in answers] == [200] * 3
            assert sorted(map(sorted, gate.calls[1:])) == [["a", "c"], ["b"]]
            assert 'subjectgen_painted_together_bucket{le="1.0"} 1.0' in httpx.get(url + "/metrics").text

    def test_too_late(self, pipe):
        with serving(gate := Gate(pipe), RequestLimits(timeout=0.2)) as (_, url):
            refused(httpx.post(url + GENERATIONS, json={"prompt": "a"}), 504, "not done within 0.2 s")
            gate.open.set()

    def test_a_worker_that_dies_says_so_and_the_next_one_paints(self, pipe):
        with serving(gate := Gate(pipe)) as (engine, url), ThreadPoolExecutor() as threads:
            lost = threads.submit(httpx.post, url + GENERATIONS, json={"prompt": "a"}, timeout=30)
            assert gate.reached.wait(20)
            waits = threads.submit(httpx.post, url + GENERATIONS, json={"prompt": "b"}, timeout=30)
            while engine.state.waiting < 1:
                time.sleep(0.01)
            (worker,) = [each for each in threading.enumerate() if each.name.startswith("subjectgen worker")][-1:]
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(SystemExit))
            gate.open.set()
            refused(lost.result(), 503, "died of SystemExit")
            assert waits.result().status_code == 200

    def test_a_bug_tells_nothing(self, pipe):
        class Broken(Gate):
            def __call__(self, *_, **__):
                raise RuntimeError("secret")

        with serving(Broken(pipe)) as (_, url):
            answer = httpx.post(url + GENERATIONS, json={"prompt": "a"})
            refused(answer, 500, "its log says why")
            assert "secret" not in answer.text

    def test_a_bug_of_a_stream_is_in_the_log(self, pipe, monkeypatch):
        class Broken(Gate):
            def __call__(self, *_, **__):
                raise RuntimeError("secret")

        logged = []
        monkeypatch.setattr(logging.getLogger("uvicorn.error"), "error", lambda *_, exc_info: logged.append(exc_info))
        with serving(Broken(pipe)) as (_, url):
            answer = httpx.post(url + GENERATIONS, json={"prompt": "a", "stream": True})
        assert "its log says why" in answer.text and "secret" not in answer.text
        assert [str(error) for error in logged] == ["secret"]


class TestGuard:
    def test_key(self, pipe, monkeypatch):
        compared = []
        compare = __import__("hmac").compare_digest
        monkeypatch.setattr("hmac.compare_digest", lambda *both: compared.append(both) or compare(*both))
        with serving(pipe, api_key=KEY) as (_, url):
            for key, status in ((None, 401), ("wrong", 401), ("\xe9", 401), (KEY, 200)):
                headers = {} if key is None else {"authorization": f"Bearer {key}".encode("latin-1")}
                for path in ("/v1/models", "/metrics", "/openapi.json"):
                    assert httpx.get(url + path, headers=headers).status_code == status
            assert httpx.get(url + "/health").status_code == 200
        assert len(compared) == 12  # in constant time, always

    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[", ""])
    def test_names_of_others_are_not_served(self, client, host):
        refused(client.get("/v1/models", headers={"host": host}), 421, "127.0.0.1")

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:8000"])
    def test_names_of_this_machine(self, client, host):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200

    @pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1.evil.example", "null", "["])
    def test_pages_of_others_are_not_served(self, client, origin):
        """A form of another's page in a browser here reaches this address, and asks for no leave before."""
        refused(client.post(EDITS, files=files(RED), headers={"origin": origin}), 403, "page of others")

    @pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8000"])
    def test_pages_of_this_machine(self, client, origin):
        assert client.get("/v1/models", headers={"origin": origin}).status_code == 200

    def test_text_is_short(self, client):
        refused(client.post(GENERATIONS, json={"prompt": "a" * 2**18}), 413, "262144 bytes")

    @pytest.mark.parametrize(
        "path", ["/v1/subjects/..%2F..%2Fetc%2Fpasswd", "/v1/jobs/%00", "/v1/jobs/..", "/%2e%2e/x"]
    )
    def test_ids_are_no_paths(self, client, path):
        assert client.get(path).status_code == 404
        refused(client.post(GENERATIONS, json={"prompt": "a", "subjects": [path]}), 400, "subjects.0")

    def test_too_much(self, pipe):
        limits = RequestLimits(max_body_bytes=1000, max_text_bytes=1000)
        with serving(pipe, limits) as (_, url):
            chunks = iter([b"x" * 400] * 5)  # of a length that nobody tells before
            for sent in ({"content": b"x" * 1001}, {"content": chunks}, {"files": files(RED.resize((200, 200)))}):
                for path in (GENERATIONS, EDITS):
                    answer = httpx.post(url + path, **sent)
                    assert answer.status_code in (413, 415), answer.text
            assert httpx.post(url + GENERATIONS, content=b" " * 999).status_code == 400

    def test_too_slow(self, pipe):
        def slowly():
            yield b"{"
            time.sleep(1)
            yield b"}"

        with serving(pipe, RequestLimits(body_seconds=0.2)) as (_, url):
            refused(httpx.post(url + GENERATIONS, content=slowly()), 408, "within 0.2 s")

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
    def test_other_addresses_need_a_key(self, host):
        with pytest.raises(ValueError, match="Set SUBJECTGEN_API_KEY"):
            check_address(host, None)
        check_address(host, KEY)

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
    def test_this_machine_needs_none(self, host):
        check_address(host, None)

    def test_a_key_that_is_too_short(self):
        with pytest.raises(ValueError, match="has 3 characters"):
            check_address("127.0.0.1", "abc")

    def test_a_port_that_is_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            result = CliRunner().invoke(app, ["serve", "--model", "nowhere/none", "--port", str(port)])
            assert result.exit_code == 2
            assert f"--port {port} of '127.0.0.1'" in result.output and "Choose another" in result.output
        check_port("127.0.0.1", port)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
    def test_the_command_refuses_before_it_loads(self, monkeypatch, host):
        monkeypatch.delenv("SUBJECTGEN_API_KEY", raising=False)
        refusal = CliRunner().invoke(app, ["serve", "--host", host, "--model", "nowhere"])
        assert refusal.exit_code == 2 and "Set SUBJECTGEN_API_KEY" in " ".join(refusal.output.split())


class TestReplicas:
    def test_without_a_cluster(self):
        refusal = CliRunner().invoke(app, ["serve", "--replicas", "4", "--model", "nowhere"])
        assert refusal.exit_code == 2 and "--replicas 4 without --ray" in refusal.output

    @pytest.mark.parametrize(("text", "numbers"), [("2", (2, 2)), ("1-4", (1, 4))])
    def test_from_so_many_to_so_many(self, text, numbers):
        assert _range_of(text) == numbers

    @pytest.mark.parametrize("text", ["0", "", "3-2", "1-2-3", "-1", "many"])
    def test_refuses(self, text):
        with pytest.raises(ValueError, match=f"--replicas '{text}'"):
            _range_of(text)


@pytest.mark.parametrize("seconds", ["inf", "1e12"])
def test_a_timeout_that_no_clock_takes(seconds):
    refusal = CliRunner().invoke(app, ["serve", "--timeout", seconds, "--model", "nowhere"])
    assert refusal.exit_code == 2 and "'--timeout'" in refusal.output


class TestAbout:
    def test_health_and_metrics(self, pipe):
        with serving(gate := Gate(pipe)) as (engine, url), ThreadPoolExecutor() as threads:
            held(engine, gate)
            asked = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "image 1"}]
            answers = [threads.submit(httpx.post, url + GENERATIONS, json=each, timeout=30) for each in asked]
            while engine.state.waiting < 3:
                time.sleep(0.01)
            health = httpx.get(url + "/health").json()
            assert health == {
                "status": "ok", "model": "tiny", "workers": 1, "ready": 1, "waiting": 3, "running": 1
            }  # fmt: skip
            gate.open.set()
            assert sorted(each.result().status_code for each in answers) == [200, 200, 400]
            told = text_string_to_metric_families(httpx.get(url + "/metrics").text)
            values = {(s.name, *s.labels.values()): s.value for family in told for s in family.samples}
            assert values["subjectgen_jobs_total", "200"] == 2
            assert values["subjectgen_jobs_total", "400"] == 1
            assert values["subjectgen_job_seconds_count",] == 2
            assert values["subjectgen_workers",] == 1

    def test_no_device_left(self, pipe):
        with serving(pipe) as (engine, url):
            engine.close()
            assert httpx.get(url + "/health").status_code == 503
            refused(httpx.post(url + GENERATIONS, json={"prompt": "a"}), 503, "closed")

    def test_unknown_paths(self, client):
        refused(client.get("/v1/nothing"), 404, "Not Found")
        refused(client.get(GENERATIONS), 405, "Method Not Allowed")


def test_malformed_bodies(client):
    """Bytes of good requests cut, doubled and changed at random: an answer that says no, never a failure."""
    rng, statuses = random.Random(0), set()
    good = [
        client.build_request("POST", GENERATIONS, json={"prompt": "a", "n": 99, "stages": [{"until": 0}], "seed": 1}),
        client.build_request("POST", EDITS, data={"prompt": "a", "n": "99"}, files=files(RED)),
        client.build_request("POST", SUBJECTS, data={"name": "image 1"}, files=files(RED)),
    ]
    for _ in range(1000):
        request = rng.choice(good)
        headers = {"content-type": request.headers["content-type"]}
        answer = client.post(request.url, content=mutated(rng, request.read()), headers=headers)
        statuses.add(answer.status_code)
        assert answer.status_code < 500, answer.text
    assert 400 in statuses


def mutated(rng, body):
    body = bytearray(body)
    for _ in range(rng.randint(1, 8)):
        place, length = rng.randrange(len(body) + 1), rng.randint(1, 40)
        part = body[place : place + length]
        body[place : place + length] = rng.choice([b"", bytes(part * 2), rng.randbytes(length), b"\0", b"\r\n--"])
    return bytes(body)


@pytest.mark.slow
def test_sigterm_lets_what_was_accepted_be_painted(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "subjectgen", "serve", "--model", str(tmp_path / "model"), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    while not listens(url):
        assert server.poll() is None
        time.sleep(0.05)
    with ThreadPoolExecutor() as threads:
        asked = {"prompt": "a", "steps": 40}
        answers = [threads.submit(httpx.post, url + GENERATIONS, json=asked, timeout=60) for _ in range(3)]
        while httpx.get(f"{url}/health").json()["running"] + httpx.get(f"{url}/health").json()["waiting"] < 3:
            time.sleep(0.01)
        os.kill(server.pid, signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 3
    assert server.wait(20) in (0, -signal.SIGTERM)
    assert not listens(url)


def listens(url):
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False

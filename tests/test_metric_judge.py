"""The judge: its questions, the strict reading of its answers, and who answers them."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
import torch
from PIL import Image
from tiny_metrics import save_chat_model, tiny_chat_model
from tiny_pipeline import picture
from transformers import AutoProcessor

from subjectgen.checkpoints import Checkpoint
from subjectgen.cli.metrics import JudgeOptions, open_metrics
from subjectgen.evaluate.metrics import chat, judge_prompts
from subjectgen.evaluate.metrics.chat import QWEN3_VL, Endpoint, LocalModel, Question
from subjectgen.evaluate.metrics.judge import LARGEST, Judge, as_shown, score_in, scores
from subjectgen.evaluate.metrics.judge_prompts import prompt_question, subject_question
from subjectgen.weights import WeightsError

RED, BLUE, GREEN = picture("red"), picture("blue", (30, 50)), picture("green", (70, 40))


class Scripted:
    """Answers from a list, and keeps what it was asked."""

    checkpoint = "scripted@1"

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def __call__(self, questions):
        self.asked += questions
        return list(self.answers)


class TestAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            "Score: 7", "It is the same mug.\nBut darker.\n\nScore: 7\n", " Score: 7 ", "**Score: 7**", "**Score:** 7",
            "Score: **7**", "Score: 7.", "Score: 7/10", "**Score: 7 / 10.**", "### Score: 7", "`Score: 7`",
        ],
    )  # fmt: skip
    def test_a_score(self, answer):
        assert score_in(answer, 10) == 7

    @pytest.mark.parametrize(
        "answer",
        [
            "", "\n", "I cannot judge this.", "Score: 11", "Score: -1", "Score: 7/4", "Score: 7.5", "score: 7",
            "Score: 7\nThank you.", "Score: N", "Score:", "Score: \u0667", "7", "Score: 7 [cut off]", "Score: 7/",
            "Score: 11/10", "Score: 7 8",
        ],
    )  # fmt: skip
    def test_a_refusal(self, answer):
        assert score_in(answer, 10) is None

    def test_ends_of_the_scale(self):
        assert (score_in("Score: 0", 4), score_in("Score: 4", 4), score_in("Score: 5", 4)) == (0, 4, None)

    def test_geometric_mean(self):
        expected = {"judge_subject": 4, "judge_prompt": 9, "judge_overall": 6, "judge_refused": 0}
        assert scores("Score: 4", "Score: 9", 10) == expected

    @pytest.mark.parametrize("pair", [("no", "Score: 9"), ("Score: 9", "no")])
    def test_one_refusal_leaves_no_number(self, pair):
        assert scores(*pair, 10) == {"judge_refused": 1}


class TestQuestions:
    def test_of_one_subject(self):
        text = subject_question(1, 4)
        assert "Image 1 shows a subject. Image 2 was painted" in text and "to 4 (in every respect)" in text

    def test_of_two(self):
        text = subject_question(2, 10)
        assert "Images 1 to 2 each show a subject. Image 3 was painted" in text and "all 2 subjects" in text

    def test_of_the_prompt(self):
        """Braces in it are nothing special."""
        assert '"a {cat} on {0}"' in prompt_question("a {cat} on {0}", 10)

    def test_large_pictures_are_shown_smaller(self):
        assert as_shown(Image.new("RGBA", (2 * LARGEST, LARGEST))).size == (LARGEST, LARGEST // 2)
        assert as_shown(RED).size == RED.size and as_shown(Image.new("L", (3, 3))).mode == "RGB"


class TestJudge:
    def test_asks_and_scores(self):
        answerer = Scripted("Same.\nScore: 8", "no idea", "Score: 2", "Score: 3")
        judge = Judge(answerer)
        found = judge([RED, BLUE], [[GREEN], [GREEN, RED]], ["a dog", "a cat"])
        whole = {"judge_subject": 8, "judge_prompt": 2, "judge_overall": 4, "judge_refused": 0}
        assert found == [whole, {"judge_refused": 1}]
        assert judge.answers == [
            {"subject": "Same.\nScore: 8", "prompt": "Score: 2"},
            {"subject": "no idea", "prompt": "Score: 3"},
        ]
        assert [len(each.images) for each in answerer.asked] == [2, 3, 1, 1]
        assert answerer.asked[1].images[2].getpixel((0, 0)) == BLUE.getpixel((0, 0))
        texts = [each.text for each in answerer.asked]
        assert texts[:2] == [subject_question(1, 10), subject_question(2, 10)]
        assert texts[2:] == [prompt_question("a dog", 10), prompt_question("a cat", 10)]
        assert re.fullmatch(r"scripted@1 \(omnicontext, questions [0-9a-f]{12}\)", *judge.checkpoints)
        assert tuple(whole) == judge.names

    def test_scale(self):
        judge = Judge(Scripted("Score: 5", "Score: 1"), "dreambench++")
        assert judge([RED], [[RED]], [""]) == [{"judge_refused": 1}]  # DreamBench++ ends at 4
        assert judge.checkpoints[0].startswith("scripted@1 (dreambench++, ")
        with pytest.raises(ValueError, match=r"scale='geneval': expected one of 'dreambench\+\+', 'omnicontext'"):
            Judge(Scripted(), "geneval")

    @pytest.mark.parametrize("name", ["SUBJECT", "PROMPT", "ANSWER"])
    def test_other_questions_are_another_judge(self, name, monkeypatch):
        """So that a picture's answers are not kept when what was asked has changed."""
        before = Judge(Scripted()).checkpoints
        assert Judge(Scripted()).checkpoints == before
        monkeypatch.setattr(judge_prompts, name, "Please. " + getattr(judge_prompts, name))
        assert Judge(Scripted()).checkpoints != before

    def test_without_reference(self):
        with pytest.raises(ValueError, match=r"picture 0 .* has no reference"):
            Judge(Scripted())([RED], [[]], ["a cat"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    save_chat_model(folder)
    return folder


@pytest.fixture
def model(folder, monkeypatch):
    monkeypatch.setattr(chat, "MAX_TOKENS", 8)
    return LocalModel.from_pretrained(checkpoint=Checkpoint(repo=str(folder)))


class TestLocalModel:
    @torch.no_grad()
    def test_the_likeliest_words(self, model, folder):
        """Token by token, by hand, with the tokens of images written out: four each."""
        question = Question(images=(RED, BLUE), text="a red cat")
        processor, network = AutoProcessor.from_pretrained(folder), tiny_chat_model()
        text = "<|im_start|>" + "<IMG_CONTEXT>" * 8 + "a red cat<|im_end|>"
        ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
        pixels, start = processor.image_processor([RED, BLUE], return_tensors="pt")["pixel_values"], ids.shape[1]
        for _ in range(8):
            following = network(input_ids=ids, pixel_values=pixels).logits[0, -1].argmax()
            ids = torch.cat([ids, following[None, None]], dim=1)
            if following == network.generation_config.eos_token_id:
                break
        said = processor.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
        ended = ids[0, -1] == network.generation_config.eos_token_id
        assert model([question]) == [said if ended else said + " [cut off]"]

    def test_batch_equals_singles(self, model):
        questions = [
            Question(images=(RED,) * count, text="a red cat on the blue ground" * length)
            for count, length in ((1, 1), (2, 3), (1, 2), (3, 1), (1, 1))
        ]
        together = model(questions)
        assert together == [model([each])[0] for each in questions]
        assert len(set(together)) > 1

    def test_opened_by_name(self, folder, model):
        (judge,) = open_metrics([f"judge={folder}"], JudgeOptions(scale="dreambench++"))
        assert judge([RED], [[BLUE]], ["a cat"]) == [{"judge_refused": 1}]
        assert judge.checkpoints == Judge(model, "dreambench++").checkpoints

    def test_as_a_judge(self, model):
        """What it says at random is no score, and that is counted."""
        judge = Judge(model)
        assert judge([RED], [[BLUE]], ["a cat"]) == [{"judge_refused": 1}]
        assert judge.answers[0].keys() == {"subject", "prompt"}

    def test_offline(self, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(WeightsError, match=f"{QWEN3_VL.revision}' is not on this machine.*hf download"):
            LocalModel.from_pretrained()


class Handler(BaseHTTPRequestHandler):
    """As much of the API as one question needs: it answers with the colours of the images that it was shown."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], asked))
        if asked["model"] == "broken":
            return self.reply(404, {"error": {"message": "no such model"}})
        content = None if asked["model"] == "mute" else answer_to(asked["messages"][0]["content"])
        message = {"role": "assistant", "content": content}
        reason = "length" if asked["model"] == "talkative" else "stop"
        choice = {"index": 0, "message": message, "finish_reason": reason}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"]}
        return self.reply(200, {**head, "choices": [choice]})

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def answer_to(content):
    images = [part["image_url"]["url"].removeprefix("data:image/png;base64,") for part in content[:-1]]
    seen = [Image.open(BytesIO(base64.b64decode(each))).getpixel((0, 0)) for each in images]
    return f"{seen} {content[-1]['text']}"


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.url = [], f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


class TestEndpoint:
    def test_each_gets_its_answer(self, server):
        questions = [Question(images=(RED, BLUE)[: 1 + k % 2], text=f"question {k}") for k in range(20)]
        endpoint = Endpoint.connect("eyes", server.url, "a-key")
        red, blue = RED.getpixel((0, 0)), BLUE.getpixel((0, 0))
        assert endpoint(questions) == [f"{[red, blue][: 1 + k % 2]} question {k}" for k in range(20)]
        assert endpoint.checkpoint == f"eyes@{server.url}/"
        path, key, asked = server.asked[0]
        assert (path, key) == ("/v1/chat/completions", "Bearer a-key")
        assert (asked["temperature"], asked["model"]) == (0, "eyes")

    def test_opened_by_name(self, server):
        """As the command line gives it: both questions reach that model there."""
        (judge,) = open_metrics(["judge"], JudgeOptions(model="eyes", url=server.url, scale="dreambench++"))
        assert judge([RED], [[BLUE]], ["a cat"]) == [{"judge_refused": 1}]
        assert [asked["model"] for _, _, asked in server.asked] == ["eyes"] * 2
        assert judge.checkpoints[0].startswith(f"eyes@{server.url}/ (dreambench++, ")

    def test_nothing_said(self, server):
        assert Endpoint.connect("mute", server.url)([Question(images=(), text="?")]) == [""]

    def test_cut_off(self, server):
        (answer,) = Endpoint.connect("talkative", server.url)([Question(images=(), text="?")])
        assert answer == "[] ? [cut off]" and score_in("Score: 7" + answer, 10) is None

    def test_an_error_names_the_endpoint(self, server):
        with pytest.raises(ConnectionError, match=f"'broken@{server.url}/' gave no answer: .*no such model"):
            Endpoint.connect("broken", server.url)([Question(images=(), text="?")])

    def test_without_a_key(self, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(ValueError, match="Set OPENAI_API_KEY"):
            Endpoint.connect("gpt")

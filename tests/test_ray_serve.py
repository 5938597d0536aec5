"""A local cluster: another replica comes when there is work; one is killed, and no accepted request goes unanswered."""

import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import uvicorn
from tiny_engine import file_of
from tiny_pipeline import picture, tiny_pipeline

from subjectgen.engine import LineFull, Painting

ray = pytest.importorskip("ray")
pytest.importorskip("grpc", reason="ray without its extra serve")

GENERATIONS = "/v1/images/generations"
TOGETHER = (r'bucket\{le="1.0"\}', "count")  # forwards of one picture, and all


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    from subjectgen.serve.app import create_app
    from subjectgen.serve.cluster import open_on_ray

    tiny_pipeline().save_pretrained(model := tmp_path_factory.mktemp("model"))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    engine, facts = open_on_ray(str(model), {"max_batch": 2, "max_waiting": 32}, (1, 2))
    server = uvicorn.Server(uvicorn.Config(create_app(engine, facts), port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield engine, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
    ray.shutdown()


def replica_processes():
    """Those that this process's cluster has for replicas."""
    children = psutil.Process().children(recursive=True)
    return [each.pid for each in children if any("ServeReplica:subjectgen" in part for part in each.cmdline())]


def num_replicas(url):
    return httpx.get(f"{url}/health", timeout=60).json()["workers"]


def asked_until_two(url):
    """The status of each request until there are two replicas."""
    statuses = []
    while num_replicas(url) < 2:
        answer = httpx.post(url + GENERATIONS, json={"prompt": "a cat", "steps": 20}, timeout=120)
        statuses.append(answer.status_code)
    return statuses


@pytest.mark.slow
def test_on_a_cluster(cluster):
    engine, url = cluster
    assert num_replicas(url) == 1
    subject = httpx.post(f"{url}/v1/subjects", files={"image": file_of(picture("red"))}, timeout=60).json()["id"]
    asked = {"prompt": "image 1", "subjects": [subject], "seed": 1}
    answer = httpx.post(url + GENERATIONS, json=asked, timeout=60).json()
    assert answer["data"][0]["seed"] == 1
    refused = httpx.post(url + GENERATIONS, json={"prompt": "image 2"}, timeout=60)
    assert refused.status_code == 400 and "image 2" in refused.json()["error"]["message"]
    jobs = engine.submit_all([Painting(prompt="a cat")] * 32)
    with pytest.raises(LineFull):
        engine.submit_all([Painting(prompt="a cat")])
    assert all(job.result(60).image for job in jobs)


@pytest.mark.slow
def test_it_grows_and_paints_together(cluster):
    _, url = cluster
    with ThreadPoolExecutor(8) as threads:
        grown = [threads.submit(asked_until_two, url) for _ in range(8)]
        assert {status for each in grown for status in each.result()} == {200}
    together = httpx.get(f"{url}/metrics", timeout=60).text
    alone, painted = (re.search(rf"subjectgen_painted_together_{name} (\S+)", together) for name in TOGETHER)
    assert alone and painted and float(alone[1]) < float(painted[1])


@pytest.mark.slow
def test_a_replica_is_killed_under_load(cluster):
    _, url = cluster
    with ThreadPoolExecutor(12) as threads:
        asked = {"prompt": "a cat", "steps": 60}
        answers = [threads.submit(httpx.post, url + GENERATIONS, json=asked, timeout=120) for _ in range(12)]
        while httpx.get(f"{url}/health", timeout=60).json()["running"] < 2:
            time.sleep(0.05)
        os.kill(replica_processes()[0], signal.SIGKILL)
        statuses = [each.result().status_code for each in answers]
    assert set(statuses) <= {200, 503} and 200 in statuses and 503 in statuses
    again = httpx.post(url + GENERATIONS, json={"prompt": "a cat"}, timeout=60)
    assert again.status_code == 200

"""Verdicts of a judge behind HTTP: a real server on this machine that reads what it is sent."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from syvla.evaluation import evaluate_vlm
from syvla.evaluation.vlm_benchmarks.judge_server import JudgeServer


class StandIn:
    """Judges like a careful grader; `failures` are status codes (or "hang") that it answers first."""

    def __init__(self):
        self.requests, self.headers, self.failures = [], [], []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.requests.append(body)
                stand_in.headers.append((self.path, self.headers.get("Authorization")))
                if stand_in.failures:
                    failure = stand_in.failures.pop(0)
                    if failure == "hang":
                        stand_in.release.wait(10)
                        return
                    if failure == "nonsense":
                        self._reply(200, b"<html>")
                        return
                    self._reply(failure, b"{}")
                    return
                text = body["messages"][-1]["content"]
                if "Options:" in text:
                    options, answer = text.split("Options:\n")[1].split("\nAnswer: ")
                    named = [line.split(". ") for line in options.split("\n")]
                    chosen = [name for name, option in named if option in answer] or ["none"]
                    self._reply(200, json.dumps({"choices": [{"message": {"content": " or ".join(chosen)}}]}).encode())
                    return
                reference, answer = (text.split(f"{part}: ")[1].split("\n")[0] for part in ("Reference", "Answer"))
                verdict = "Unclear." if not answer else "Correct" if answer in reference else "INCORRECT."
                self._reply(200, json.dumps({"choices": [{"message": {"content": verdict}}]}).encode())

            def _reply(self, status, body):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.release = threading.Event()

        class Server(ThreadingHTTPServer):
            request_queue_size = (
                64  # more than the judge's workers: a connection that is turned away waits for a second
            )

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    stand_in = StandIn()
    yield stand_in
    stand_in.release.set()
    stand_in.server.shutdown()
    stand_in.server.server_close()


ROWS = [{"question": f"Is figure {i} red?", "gt_answer_details": f"It is red{i}."} for i in range(3)]
ANSWERS = ["red0", "blue", ""]


def test_verdicts_come_in_order_and_carry_the_key(server):
    judge = JudgeServer(server.url, "grader", "weights", key="secret")
    assert judge.verdicts(ROWS, ANSWERS) == ["correct", "incorrect", "unclear"]
    assert set(server.headers) == {("/v1/chat/completions", "Bearer secret")}
    assert {request["model"] for request in server.requests} == {"grader"}


def test_cache_belongs_to_one_checkpoint_and_one_judge(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    JudgeServer(server.url, "grader", "weights", cache).verdicts(ROWS, ANSWERS)
    assert len(server.requests) == 3
    again = JudgeServer(server.url, "grader", "weights", cache)
    assert again.verdicts(ROWS, ANSWERS) == ["correct", "incorrect", "unclear"]
    assert len(server.requests) == 3, "known verdicts are not asked for"
    again.verdicts(ROWS, ["blue", "blue", ""])
    assert len(server.requests) == 4, "another answer is another question"
    JudgeServer(server.url, "grader", "other weights", cache).verdicts(ROWS, ANSWERS)
    assert len(server.requests) == 7
    JudgeServer(server.url, "other grader", "weights", cache).verdicts(ROWS, ANSWERS)
    assert len(server.requests) == 10


def test_a_torn_line_costs_one_verdict(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    JudgeServer(server.url, "grader", "weights", cache, workers=1).verdicts(ROWS, ANSWERS)
    cache.write_bytes(cache.read_bytes()[:-20])
    for _ in range(2):
        judge = JudgeServer(server.url, "grader", "weights", cache)
        assert judge.verdicts(ROWS, ANSWERS) == ["correct", "incorrect", "unclear"]
    assert len(server.requests) == 4


@pytest.mark.parametrize("failure", [500, 503, 429, "nonsense", "hang"])
def test_passing_faults_are_tried_again(server, failure):
    server.failures = [failure, failure]
    timeout = 1.0 if failure == "hang" else 30.0
    judge = JudgeServer(server.url, "grader", "weights", pause=0.01, timeout=timeout, workers=1)
    assert judge.verdicts(ROWS[:1], ANSWERS[:1]) == ["correct"]
    assert len(server.requests) == 3


def test_lasting_faults_end_the_run_and_keep_the_verdicts(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    judge = JudgeServer(server.url, "grader", "weights", cache, pause=0.01, workers=1)
    judge.verdicts(ROWS[:1], ANSWERS[:1])
    server.failures = [500] * 40
    with pytest.raises(OSError, match=r"gave no verdict in 4 tries \(last: HTTP 500\); verdicts so far are kept"):
        judge.verdicts(ROWS, ANSWERS)
    assert len(cache.read_text().splitlines()) == 1


def test_a_refusal_is_not_repeated(server):
    server.failures = [401]
    with pytest.raises(OSError, match=r"refuses with HTTP 401 \({}\); check judge_url"):
        JudgeServer(server.url, "grader", "weights").verdicts(ROWS[:1], ANSWERS[:1])
    assert len(server.requests) == 1


def test_the_harness_asks_the_judge_once_per_answer_and_checkpoint(server, fixed_answers, data_root, rows, tmp_path):
    """HallusionBench with lmms-eval's own prompt, judged on free text that the rule could not read."""
    answers = [row["gt_answer_details"].split()[-1] for row in rows["hallusionbench"]]  # "red."
    generator = fixed_answers(lambda task, doc: answers[doc] if doc else "")
    options = {"data_root": data_root, "output": tmp_path, "judge_url": server.url, "progress": False}
    options["protocol"] = "lmms-eval"
    result = evaluate_vlm(generator, ["hallusionbench"], judge_model="grader", **options)
    assert result.benchmarks["hallusionbench"].parts["aAcc"] == pytest.approx(100 * 27 / 28, abs=1e-4)
    assert result.settings["judge"] == f"grader at {server.url}"
    different = {(row["question"], row["gt_answer_details"]) for row in rows["hallusionbench"][1:]}
    assert len(different) + 1 <= len(server.requests) <= 28
    asked = len(server.requests)
    again = evaluate_vlm(generator, ["hallusionbench"], judge_model="grader", resume=True, **options)
    assert again.benchmarks["hallusionbench"].parts == result.benchmarks["hallusionbench"].parts
    assert len(server.requests) == asked, "verdicts are kept in the output folder"
    generator.checkpoint = "other weights"
    evaluate_vlm(generator, ["hallusionbench"], judge_model="grader", resume=True, **options)
    assert len(server.requests) >= 2 * len(different)
    prompts = {
        json.loads(line)["prompt_text"] for line in next(tmp_path.glob("answers-*.jsonl")).read_text().splitlines()
    }
    assert not any("yes or no" in prompt for prompt in prompts)


def test_choices_are_one_option_or_none(server, tmp_path):
    judge = JudgeServer(server.url, "grader", "weights", tmp_path / "judge.jsonl")
    options = {"A": "red", "B": "blue"}
    asked = [("Which?", options, answer) for answer in ("reddish", "rather blue", "red and blue", "green")]
    assert judge.choices(asked) == ["A", "B", None, None]
    assert judge.choices(asked) == ["A", "B", None, None]
    assert len(server.requests) == 4, "a choice of none is kept as well"


def test_under_vlmevalkit_the_judge_reads_what_the_rules_cannot(server, fixed_answers, data_root, rows):
    truth = [row["options"][int(row["answer"])] for row in rows["ai2d"]]
    vague = fixed_answers(
        lambda task, doc: "x" * 200 + truth[doc]
    )  # too long for the rule that looks for an option's text
    alone = evaluate_vlm(vague, ["ai2d"], data_root=data_root, progress=False).benchmarks["ai2d"]
    assert (alone.score, alone.unparsable) == (0, 1)
    judged = evaluate_vlm(vague, ["ai2d"], data_root=data_root, judge_url=server.url, progress=False).benchmarks["ai2d"]
    assert (judged.score, judged.unparsable) == (100, 1)


def test_other_schemes_are_refused():
    with pytest.raises(ValueError, match="judge_url: expected http"):
        JudgeServer("file:///etc/passwd", "grader", "weights")

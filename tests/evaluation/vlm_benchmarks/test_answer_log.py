"""The log of answers survives crashes and mixes neither checkpoints nor processes."""

from syvla.evaluation.vlm_benchmarks.answer_log import Answer, AnswerLog


def answer(doc_id=0, checkpoint="a", text="red\n", prompt="p"):
    return Answer("ai2d", doc_id, prompt, checkpoint, text, 2, "What?")


def test_answers_come_back_to_every_process_of_the_same_checkpoint(tmp_path):
    AnswerLog(tmp_path, "a", rank=0).append([answer(0), answer(1)])
    AnswerLog(tmp_path, "a", rank=1).append([answer(2, text="blue")])
    log = AnswerLog(tmp_path, "a", rank=0)
    assert {key[1]: value.text for key, value in log.known.items()} == {0: "red\n", 1: "red\n", 2: "blue"}
    assert AnswerLog(tmp_path, "b").known == {}


def test_another_prompt_is_another_question(tmp_path):
    AnswerLog(tmp_path, "a").append([answer()])
    assert ("ai2d", 0, "p") in AnswerLog(tmp_path, "a").known
    assert ("ai2d", 0, "q") not in AnswerLog(tmp_path, "a").known


def test_a_torn_line_costs_its_own_answer_only(tmp_path):
    log = AnswerLog(tmp_path, "a")
    log.append([answer(0), answer(1)])
    log.path.write_bytes(log.path.read_bytes()[:-15])
    resumed = AnswerLog(tmp_path, "a")
    assert [key[1] for key in resumed.known] == [0]
    resumed.append([answer(2)])
    assert [key[1] for key in AnswerLog(tmp_path, "a").known] == [0, 2]

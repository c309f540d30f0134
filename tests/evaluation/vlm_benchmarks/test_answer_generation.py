"""Answers do not depend on batches, memory, duplicates or an earlier run, and the model is left as it was."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor

from syvla.evaluation.vlm_benchmarks.answer_generation import AnswerGenerator, generation_settings
from syvla.evaluation.vlm_benchmarks.answer_log import AnswerLog
from syvla.evaluation.vlm_benchmarks.model_loading import load_generator
from syvla.evaluation.vlm_benchmarks.prompts import DamagedRow, PromptRenderer, Question


class LimitedMemory(torch.nn.Module):
    """A model that runs out of memory, as a GPU would, with more than `rows` rows."""

    def __init__(self, model, rows):
        super().__init__()
        self.inner, self.rows, self.batches = model, rows, []
        self.generation_config, self.device = model.generation_config, model.device

    def generate(self, input_ids, **inputs):
        if len(input_ids) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        self.batches.append(tuple(input_ids.shape))
        return self.inner.generate(input_ids, **inputs)


def question(i, words=1, side=32, **generation):
    image = Image.effect_noise((side, side + 16 * (i % 3)), 60 + 10 * i).convert("RGB") if i % 4 else None
    content = [{"type": "image", "image": image}] if image else []
    content.append({"type": "text", "text": "Where is the red cube? " * words + str(i)})
    return Question("task", i, lambda: [{"role": "user", "content": content}], {"max_new_tokens": 6, **generation})


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_generator(str(checkpoint), progress=False)


@pytest.fixture(scope="module")
def questions():
    return [question(i, words=1 + i % 4, side=32 + 16 * (i % 2)) for i in range(12)]


@pytest.fixture(scope="module")
def single_answers(loaded, questions):
    generator = AnswerGenerator(loaded.model, loaded.renderer, max_batch_size=1, progress=False)
    return [answer.text for answer in generator.answer(questions)]


def generator_of(loaded, model=None, **options):
    return AnswerGenerator(model or loaded.model, loaded.renderer, progress=False, **options)


@pytest.mark.parametrize("options", [{"max_batch_size": 16}, {"max_batch_size": 5}, {"batch_tokens": 300}])
def test_batches_do_not_change_answers(loaded, questions, single_answers, options):
    assert len(set(single_answers)) > 6, "the comparison would be empty if every answer were the same"
    assert [a.text for a in generator_of(loaded, **options).answer(questions)] == single_answers


@pytest.mark.parametrize("rows", [1, 3])
def test_out_of_memory_halves_the_batch_until_it_fits(loaded, questions, single_answers, rows):
    model = LimitedMemory(loaded.model, rows)
    generator = generator_of(loaded, model, max_batch_size=12)
    assert [a.text for a in generator.answer(questions)] == single_answers
    assert max(count for count, _ in model.batches) <= rows
    assert generator.batch_tokens < 16384, "later batches start smaller"
    assert sum(count for count, _ in model.batches) == 12, "nothing is generated twice"


def test_one_question_that_does_not_fit_is_named(loaded, questions):
    with pytest.raises(
        torch.OutOfMemoryError, match=r"task, row \d+: one question of \d+ tokens does not fit .*max_pixels"
    ):
        generator_of(loaded, LimitedMemory(loaded.model, 0)).answer(questions)


def test_mode_of_the_model_is_restored_even_by_a_failure(loaded, questions):
    loaded.model.train()
    try:
        generator_of(loaded).answer(questions[:2])
        assert loaded.model.training
        with pytest.raises(ZeroDivisionError):
            generator_of(loaded).answer([Question("task", 0, lambda: 1 / 0)])
        assert loaded.model.training
    finally:
        loaded.model.eval()


def test_a_question_that_occurs_twice_is_asked_once(loaded, questions, single_answers):
    model = LimitedMemory(loaded.model, 99)
    answers = generator_of(loaded, model).answer([questions[1], questions[2], questions[1]])
    assert [a.text for a in answers] == [single_answers[1], single_answers[2], single_answers[1]]
    assert sum(count for count, _ in model.batches) == 2


def test_known_answers_are_not_asked_again(loaded, questions, single_answers, tmp_path):
    model = LimitedMemory(loaded.model, 99)
    for asked in (questions[:5], questions):
        generator = generator_of(loaded, model, checkpoint="a", log=AnswerLog(tmp_path, "a"))
        texts = [a.text for a in generator.answer(asked)]
        assert texts == single_answers[: len(asked)]
    assert sum(count for count, _ in model.batches) == len(questions)
    generator_of(loaded, model, checkpoint="b", log=AnswerLog(tmp_path, "b")).answer(questions[:1])
    assert sum(count for count, _ in model.batches) == len(questions) + 1


def test_a_changed_generation_configuration_is_asked_anew(loaded, questions, single_answers, tmp_path):
    """Qwen2.5-VL's checkpoints bring a repetition penalty of their own, which changes what greedy decoding says."""
    config = loaded.model.generation_config
    before = config.repetition_penalty
    texts = {}
    try:
        for penalty in (before, 5.0, before):
            config.repetition_penalty = penalty
            model = LimitedMemory(loaded.model, 99)
            generator = generator_of(loaded, model, checkpoint="a", log=AnswerLog(tmp_path, "a"))
            texts.setdefault(penalty, []).append([a.text for a in generator.answer(questions)])
            asked = sum(count for count, _ in model.batches)
            assert asked == (0 if len(texts[penalty]) == 2 else len(questions))
            assert generator_of(loaded).settings()["generation_config"].get("repetition_penalty", before) == penalty
    finally:
        config.repetition_penalty = before
    assert texts[before] == [single_answers] * 2
    assert texts[5.0][0] != single_answers


def test_a_tasks_own_repetition_penalty_holds_over_the_checkpoints(loaded, questions, single_answers):
    config = loaded.model.generation_config
    before = config.repetition_penalty
    try:
        config.repetition_penalty = 5.0
        asked = [replace(q, generation={**q.generation, "repetition_penalty": 1.0}) for q in questions]
        assert [a.text for a in generator_of(loaded).answer(asked)] == single_answers
    finally:
        config.repetition_penalty = before


def test_a_damaged_row_is_named_and_the_others_are_answered(loaded, questions, single_answers):
    def damaged():
        raise DamagedRow("its image is missing")

    generator = generator_of(loaded)
    answers = generator.answer([questions[0], Question("task", 77, damaged), questions[1]])
    assert [a.text for a in answers] == [single_answers[0], "", single_answers[1]]
    assert [bool(a.damage) for a in answers] == [False, True, False]
    assert generator.damaged == {("task", 77): "its image is missing"}


def test_digest_names_everything_the_model_sees(loaded, checkpoint):
    picture = Image.new("RGB", (32, 32), (200, 0, 0))

    def of(image, text="What?", tokens=6, renderer=loaded.renderer):
        chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
        return renderer.render(Question("task", 0, lambda: chat, {"max_new_tokens": tokens})).digest

    changed = picture.copy()
    changed.putpixel((3, 3), (0, 0, 0))
    smaller = PromptRenderer(AutoProcessor.from_pretrained(checkpoint), max_pixels=2048)
    digests = [of(picture), of(changed), of(picture, "Who?"), of(picture, tokens=7), of(picture, renderer=smaller)]
    assert len(set(digests)) == 5
    assert of(picture.copy()) == digests[0]


@pytest.mark.parametrize("side", [16, 40, 64, 200])
def test_length_is_known_without_the_pixels(loaded, side):
    prompt = loaded.renderer.render(question(1, side=side))
    assert prompt.tokens == loaded.renderer.inputs([prompt])["input_ids"].shape[1]


def test_pixel_limits_scale_images_and_leave_the_callers_processor_alone(checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    before = dict(processor.image_processor.size), processor.max_length
    renderer = PromptRenderer(processor, 2048, min_pixels=256, max_pixels=1024)
    grid = renderer.inputs([renderer.render(question(1, side=200))])["image_grid_thw"]
    assert grid.prod().item() * 8 * 8 <= 1024
    assert (dict(processor.image_processor.size), processor.max_length) == before
    with pytest.raises(ValueError, match="expected 0 < min <= max, got 4096 and 1024"):
        PromptRenderer(processor, min_pixels=4096, max_pixels=1024)


def test_tasks_decide_sampling_and_until_is_ignored():
    greedy = generation_settings({"max_new_tokens": 9, "temperature": 0, "top_p": 1.0, "until": ["\n"]})
    assert greedy == {
        "max_new_tokens": 9,
        "num_beams": 1,
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
    }
    assert generation_settings({})["max_new_tokens"] == 128
    assert generation_settings({"temperature": 0.7})["do_sample"]


def test_a_plain_qwen_checkpoint_is_asked_in_the_same_way(checkpoint, questions, single_answers, tmp_path):
    """The VLM alone, saved as a Qwen2.5-VL checkpoint, answers as the SyVLA checkpoint around it."""
    AutoModelForImageTextToText.from_pretrained(checkpoint).vlm.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    generator = load_generator(str(tmp_path), progress=False)
    assert type(generator.model) is Qwen2_5_VLForConditionalGeneration
    assert [a.text for a in generator.answer(questions)] == single_answers


def test_qwens_own_processor_makes_the_same_inputs(loaded, questions):
    ours = loaded.renderer.processor
    qwens = object.__new__(Qwen2_5_VLProcessor)  # its __init__ wants a video processor, which wants torchvision
    qwens.tokenizer, qwens.image_processor, qwens.chat_template = (
        ours.tokenizer,
        ours.image_processor,
        ours.chat_template,
    )
    qwens.image_token, qwens.image_token_id = "<|image_pad|>", loaded.renderer.image_token_id
    qwens.video_token, qwens.video_token_id = "<|video_pad|>", -1
    renderer = PromptRenderer(qwens)
    prompts = [[r.render(q) for q in questions[:5]] for r in (renderer, loaded.renderer)]
    assert [p.digest for p in prompts[0]] == [p.digest for p in prompts[1]]
    inputs = [r.inputs(p) for r, p in zip((renderer, loaded.renderer), prompts, strict=True)]
    assert set(inputs[0]) == set(inputs[1]) >= {"mm_token_type_ids", "pixel_values"}
    for name, value in inputs[0].items():
        assert torch.equal(value, inputs[1][name]), name

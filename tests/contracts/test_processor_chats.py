"""Chats as transformers' documentation shows them, beside Qwen2.5-VL's processor on the same input."""

import base64
import functools
import http.server
import io
import threading

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from qwen_processor import qwen_processor
from transformers import AutoProcessor, pipeline
from transformers.utils import is_torchvision_available

PICTURE = np.random.default_rng(3).integers(0, 256, (40, 64, 3), dtype=np.uint8)
READY = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    Image.fromarray(PICTURE).save(path / "a picture.png")
    return path


@pytest.fixture(scope="module")
def server(folder):
    """A web server of the folder on this machine's own address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/a%20picture.png"
        running.shutdown()


def encoded() -> str:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


SOURCES = {
    "path": lambda folder, server: {"type": "image", "path": str(folder / "a picture.png")},
    "path under image": lambda folder, server: {"type": "image", "image": str(folder / "a picture.png")},
    "path object": lambda folder, server: {"type": "image", "image": folder / "a picture.png"},
    "file address": lambda folder, server: {"type": "image", "url": (folder / "a picture.png").as_uri()},
    "http address": lambda folder, server: {"type": "image", "url": server},
    "http address under image": lambda folder, server: {"type": "image", "image": server},
    "data address": lambda folder, server: {"type": "image", "url": f"data:image/png;base64,{encoded()}"},
    "base64": lambda folder, server: {"type": "image", "base64": encoded()},
    "image_url": lambda folder, server: {"type": "image_url", "image_url": {"url": server}},
    "image_url of data": lambda folder, server: {
        "type": "image_url",
        "image_url": f"data:image/png;base64,{encoded()}",
    },
    "PIL": lambda folder, server: {"type": "image", "image": Image.fromarray(PICTURE)},
    "PIL without a type": lambda folder, server: {"image": Image.fromarray(PICTURE)},
    "HWC array": lambda folder, server: {"type": "image", "image": PICTURE},
    "CHW array": lambda folder, server: {"type": "image", "image": PICTURE.transpose(2, 0, 1)},
    "HWC tensor": lambda folder, server: {"type": "image", "image": torch.from_numpy(PICTURE)},
    "CHW tensor": lambda folder, server: {"type": "image", "image": torch.from_numpy(PICTURE).permute(2, 0, 1)},
}


def asked(*parts, role: str = "user") -> dict:
    return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


@pytest.fixture
def qwen(tiny_processor):
    return qwen_processor(tiny_processor)


def equal(ours, theirs) -> None:
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(value)), key


@pytest.mark.parametrize("source", SOURCES)
def test_an_image_from_anywhere_is_the_same_image(tiny_processor, qwen, folder, server, source):
    """The right value is Qwen's for the same pixels as a PIL image."""
    part = SOURCES[source](folder, server)
    chat = [asked(part, "What is it?")]
    before = dict(part)
    ours = tiny_processor.apply_chat_template(chat, add_generation_prompt=True, **READY)
    reference = [asked({"type": "image", "image": Image.fromarray(PICTURE)}, "What is it?")]
    equal(ours, qwen.apply_chat_template(reference, add_generation_prompt=True, **READY))
    assert chat[0]["content"][0] is part
    assert [(key, id(value)) for key, value in part.items()] == [(key, id(value)) for key, value in before.items()]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image", "path": "nowhere.png"}, r"images\[0\]: no image could be read from 'nowhere.png'"),
        ({"type": "image", "url": "http://127.0.0.1:9/x.png"}, r"images\[0\]: no image could be read from 'http://127"),
        ({"type": "image", "url": "file://elsewhere/x.png"}, "its host is elsewhere, not this machine"),
        ({"type": "image", "base64": "AAAA"}, r"images\[0\]: no image could be read from 'AAAA'"),
        ({"type": "image", "image": 7}, r"images\[0\]: expected a PIL image, a path, .* got int"),
        ({"type": "image", "image": PICTURE, "url": "x"}, "holds an image under image and url; give one of them"),
        ({"type": "image"}, "the text holds 1 image placeholders, got 0 images"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(tiny_processor, part, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor.apply_chat_template([asked(part, "What?")], **READY)


SMALL = Image.fromarray(PICTURE[:32, :32])
IMAGE, OTHER = {"type": "image", "image": Image.fromarray(PICTURE)}, {"type": "image", "image": SMALL}
CHATS = {
    "text": [asked("Hello")],
    "several images": [asked(IMAGE, " or ", OTHER, "?", IMAGE)],
    "system": [asked("Be brief.", role="system"), asked(IMAGE, "What?")],
    "answers": [
        asked(IMAGE, "What?"),
        asked("A cube.", role="assistant"),
        asked("Where?", OTHER),
        asked("Here.", role="assistant"),
    ],
    "tool": [
        asked("What time?"),
        asked("I ask.", role="assistant"),
        asked("12:00", role="tool"),
        asked("Noon.", role="assistant"),
    ],
}


@pytest.mark.parametrize("case", CHATS)
def test_a_chat_becomes_what_qwen_makes_of_it(tiny_processor, qwen, case):
    chat = CHATS[case]
    options = {"add_generation_prompt": chat[-1]["role"] != "assistant"}
    equal(
        tiny_processor.apply_chat_template(chat, **options, **READY), qwen.apply_chat_template(chat, **options, **READY)
    )
    ids = tiny_processor.apply_chat_template(chat, tokenize=True, return_tensors="pt", **options)
    assert torch.equal(ids, tiny_processor.apply_chat_template(chat, **options, **READY)["input_ids"])
    text = tiny_processor.apply_chat_template(chat, **options)
    assert text == qwen.apply_chat_template(chat, **options)
    lists = tiny_processor.apply_chat_template(chat, tokenize=True, return_dict=True, **options)
    assert isinstance(lists["input_ids"], list)


def test_contents_that_are_strings_are_texts(tiny_processor):
    strings = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    parts = [asked("Hello"), asked("Hi", role="assistant")]
    equal(tiny_processor.apply_chat_template(strings, **READY), tiny_processor.apply_chat_template(parts, **READY))


def test_a_batch_of_chats(tiny_processor, qwen):
    chats = [CHATS["several images"], CHATS["text"], CHATS["system"]]
    keywords = {"padding": True, "padding_side": "left"}
    ours = tiny_processor.apply_chat_template(chats, add_generation_prompt=True, processor_kwargs=keywords, **READY)
    equal(ours, qwen.apply_chat_template(chats, add_generation_prompt=True, processor_kwargs=dict(keywords), **READY))
    flat = tiny_processor.apply_chat_template(chats, add_generation_prompt=True, **keywords, **READY)
    equal(flat, ours)
    assert ours["input_ids"].shape[0] == 3


def test_images_beside_a_chat_take_its_places(tiny_processor):
    whole = [asked(IMAGE, "What?", OTHER)]
    places = [asked({"type": "image"}, "What?", {"type": "image"})]
    images = [IMAGE["image"], OTHER["image"]]
    equal(tiny_processor.apply_chat_template(places, processor_kwargs={"images": images}, **READY),
          tiny_processor.apply_chat_template(whole, **READY))  # fmt: skip
    equal(
        tiny_processor.apply_chat_template(places, images=images, **READY),
        tiny_processor.apply_chat_template(whole, **READY),
    )
    with pytest.raises(ValueError, match=r"images: the chats leave places for \[2\] images, got 1"):
        tiny_processor.apply_chat_template(places, images=images[:1], **READY)


def test_images_of_several_texts_belong_to_their_text(tiny_processor):
    one, two = (f"{'<|vision_start|><|image_pad|><|vision_end|>' * n}What?" for n in (1, 2))
    nested = tiny_processor(text=[one, two], images=[[PICTURE], [PICTURE, PICTURE]], padding=True, return_tensors="pt")
    equal(nested, tiny_processor(text=[one, two], images=[PICTURE] * 3, padding=True, return_tensors="pt"))
    equal(nested, tiny_processor(text=[one, two], images=np.stack([PICTURE] * 3), padding=True, return_tensors="pt"))
    with pytest.raises(ValueError, match=r"images: the text holds \[1, 2\] image placeholders, got \[2, 1\] images"):
        tiny_processor(text=[one, two], images=[[PICTURE, PICTURE], [PICTURE]], padding=True)
    only = tiny_processor(images=[PICTURE], return_tensors="pt")
    assert set(only) == {"pixel_values", "image_grid_thw"}
    with pytest.raises(ValueError, match="text: missing, and no images either"):
        tiny_processor()
    with pytest.raises(ValueError, match="text: expected a string or a list of strings"):
        tiny_processor(text=[1, 2])


def test_an_answer_may_be_continued(tiny_processor, qwen):
    chat = [asked(IMAGE, "What?"), asked("It is a", role="assistant")]
    ours = tiny_processor.apply_chat_template(chat, continue_final_message=True, **READY)
    equal(ours, qwen.apply_chat_template(chat, continue_final_message=True, **READY))
    assert tiny_processor.decode(ours["input_ids"][0]).endswith("<|im_start|>assistant\nIt is a")
    with pytest.raises(ValueError, match="not compatible"):
        tiny_processor.apply_chat_template(chat, continue_final_message=True, add_generation_prompt=True, **READY)


def test_float_images_need_to_say_their_range(tiny_processor, qwen):
    unit = PICTURE.astype(np.float32) / 255
    chat = [asked({"type": "image", "image": unit}, "What?")]
    with pytest.raises(ValueError, match="floats of at most 1; pass do_rescale=False"):
        tiny_processor.apply_chat_template(chat, **READY)
    keywords = {"do_rescale": False, "return_tensors": "pt"}
    text = tiny_processor.apply_chat_template(chat)
    equal(tiny_processor(text=text, images=[unit], **keywords), qwen(text=text, images=[unit], **keywords))


def test_an_ambiguous_layout_is_asked_for(tiny_processor, qwen):
    image = np.random.default_rng(0).integers(0, 256, (3, 64, 3), dtype=np.uint8)
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    for layout in ("channels_first", "channels_last"):
        keywords = {"input_data_format": layout, "return_tensors": "pt"}
        equal(tiny_processor(text=text, images=[image], **keywords), qwen(text=text, images=[image], **keywords))
    with pytest.raises(ValueError, match="may have its channels first or last; pass input_data_format"):
        tiny_processor(text=text, images=[image])


def test_pictures_are_read_as_a_person_sees_them(tiny_processor, folder):
    """An orientation of EXIF, 16 bits and transparency mean the same in a chat as in a dataset: see `to_rgb`."""
    turned, deep, clear = folder / "turned.jpg", folder / "deep.png", folder / "clear.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(turned, exif=exif, quality=100, subsampling=0)
    Image.fromarray(np.full((32, 64), 40_000, np.uint16)).save(deep)
    Image.new("RGBA", (64, 32), (0, 0, 0, 0)).save(clear)
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    upright = tiny_processor(text=text, images=[turned], return_tensors="pt")["image_grid_thw"][0].tolist()
    assert upright[1] > upright[2], "64 x 40 after a quarter turn"
    for path, level in ((deep, 40_000 / 65_535), (clear, 1.0)):
        for image in (path, Image.open(path)):
            pixels = tiny_processor(text=text, images=[image], do_normalize=False, return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(pixels, torch.full_like(pixels, level), rtol=0, atol=1 / 255)


# ---------------------------------------------------------------- assistant masks


def marked(processor, batch, row: int = 0) -> str:
    ids, mask = batch["input_ids"][row], batch["assistant_masks"][row]
    return processor.tokenizer.decode(torch.as_tensor(ids)[torch.as_tensor(mask).bool()])


def test_assistant_masks_mark_the_answers_and_nothing_else(tiny_processor):
    chat = [asked("Be brief.", role="system"), asked(IMAGE, "assistant\nWhat?"), asked("A red cube.", role="assistant"),
            asked("And ", OTHER, "?"), asked("Sí: 立方体 🤖.", role="assistant")]  # fmt: skip
    other = [asked("No picture."), asked("No.", role="assistant"), asked("Really?")]
    batch = tiny_processor.apply_chat_template(
        [chat, other],
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "left"},
        **READY,
    )
    assert marked(tiny_processor, batch) == "A red cube.<|im_end|>Sí: 立方体 🤖.<|im_end|>"
    assert marked(tiny_processor, batch, 1) == "No.<|im_end|>"
    assert batch["assistant_masks"].shape == batch["input_ids"].shape
    assert not {"offset_mapping", "text_replacement_offsets"} & set(batch)
    plain = tiny_processor.apply_chat_template([chat, other], padding=True, **READY)
    equal({k: v for k, v in batch.items() if k != "assistant_masks"}, plain)
    lists = tiny_processor.apply_chat_template(
        [chat, other], return_assistant_tokens_mask=True, tokenize=True, return_dict=True
    )
    assert marked(tiny_processor, lists) == marked(tiny_processor, batch)
    cut = tiny_processor.apply_chat_template(
        [other], return_assistant_tokens_mask=True, truncation=True, max_length=len(lists["input_ids"][1]) - 1, **READY
    )
    assert marked(tiny_processor, cut) == "No.<|im_end|>"


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.18"), reason="its masks forget the images' tokens")
def test_assistant_masks_are_those_of_qwen(tiny_processor, qwen):
    options = {"return_assistant_tokens_mask": True, **READY}
    equal(
        tiny_processor.apply_chat_template(CHATS["answers"], **options),
        qwen.apply_chat_template(CHATS["answers"], **options),
    )


def test_assistant_masks_that_would_be_forgotten_are_refused(tiny_processor):
    for options in ({"tokenize": True}, {"return_dict": True}):
        with pytest.raises(ValueError, match="return_assistant_tokens_mask: needs tokenize=True and return_dict=True"):
            tiny_processor.apply_chat_template(CHATS["answers"], return_assistant_tokens_mask=True, **options)
    with pytest.raises(ValueError, match="return_assistant_tokens_mask: a message that is to be continued"):
        tiny_processor.apply_chat_template(
            CHATS["answers"], return_assistant_tokens_mask=True, continue_final_message=True, **READY
        )


# ---------------------------------------------------------------- what a chat cannot say


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"add_generation_promt": True},
            TypeError,
            "unexpected keyword 'add_generation_promt'; did you mean 'add_generation_",
        ),
        ({"tokenise": True}, TypeError, "apply_chat_template: unexpected keyword 'tokenise'; did you mean 'tokenize'"),
        ({"processor_kwargs": {"paddin": 1}, "tokenize": True}, TypeError, "processor: unexpected keyword 'paddin'"),
        ({"padding": True}, ValueError, "padding: acts on tokens; pass tokenize=True"),
        (
            {"padding": True, "processor_kwargs": {"padding": True}, "tokenize": True},
            ValueError,
            "padding: passed two times",
        ),
        ({"tools": [{"name": "clock"}]}, ValueError, "tools: this chat template does not read them"),
        ({"documents": [{"title": "a", "text": "b"}]}, ValueError, "documents: this chat template does not read them"),
        ({"videos": ["a.mp4"], "tokenize": True}, ValueError, "videos: SyVLA reads images only"),
    ],
)
def test_an_option_without_effect_is_refused(tiny_processor, options, error, message):
    with pytest.raises(error, match=message):
        tiny_processor.apply_chat_template([asked("Hello")], **options)


def test_a_template_of_the_callers_may_read_more(tiny_processor):
    template = (
        "{{ greeting }}{% for tool in tools %}{{ tool.name }}{% endfor %}"
        "{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    chat = [{"role": "user", "content": " please"}]
    text = tiny_processor.apply_chat_template(chat, chat_template=template, tools=[{"name": "clock"}], greeting="Use ")
    assert text == "Use clock please"


def test_messages_that_would_be_forgotten_are_refused(tiny_processor):
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {}}}]}
    with pytest.raises(Exception, match="SyVLA answers in text; got tool_calls"):
        tiny_processor.apply_chat_template([asked("Time?"), {**call, "content": "I ask."}])
    with pytest.raises(ValueError, match=r"messages\[1\]: holds no content"):
        tiny_processor.apply_chat_template([asked("Time?"), call], **READY)
    with pytest.raises(ValueError, match=r"messages\[0\].content\[0\]: expected a part such as .* got str"):
        tiny_processor.apply_chat_template([{"role": "user", "content": ["hello"]}], **READY)
    with pytest.raises(ValueError, match="conversation: expected at least one message"):
        tiny_processor.apply_chat_template([], **READY)


# ---------------------------------------------------------------- decoding, saving, inference engines


def test_decoding_is_that_of_qwen(tiny_processor, qwen):
    ids = tiny_processor.apply_chat_template([CHATS["answers"], CHATS["text"]], padding=True, **READY)["input_ids"]
    for name in ("batch_decode", "post_process_image_text_to_text"):
        for keywords in ({}, {"skip_special_tokens": True}, {"skip_special_tokens": False}):
            assert getattr(tiny_processor, name)(ids, **keywords) == getattr(qwen, name)(ids, **keywords), name


def test_token_counts_for_inference_engines_are_those_of_qwen(tiny_processor, qwen):
    sizes = [(40, 64), (32, 32), (300, 200)]
    ours, theirs = tiny_processor._get_num_multimodal_tokens(sizes), qwen._get_num_multimodal_tokens(image_sizes=sizes)
    assert (ours.num_image_tokens, ours.num_image_patches) == (theirs.num_image_tokens, theirs.num_image_patches)
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    grids = tiny_processor(images=images, return_tensors="pt")["image_grid_thw"]
    assert ours.num_image_patches == grids.prod(-1).tolist()


@pytest.mark.parametrize(
    "keywords",
    [{"max_pixels": 64 * 64}, {"images_kwargs": {"min_pixels": 96 * 96, "max_pixels": 128 * 128}}, {"padding": True}],
    ids=["max_pixels", "images_kwargs", "padding"],
)
def test_token_counts_follow_the_keywords_of_a_call_as_those_of_qwen(tiny_processor, qwen, keywords):
    sizes = [[40, 64], [300, 200]]
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    text = ["<|vision_start|><|image_pad|><|vision_end|>"] * 2
    counts = tiny_processor._get_num_multimodal_tokens(image_sizes=sizes, **keywords)
    for processor in (tiny_processor, qwen):
        batch = processor(images=images, text=text, **{"padding": True, **keywords}, return_tensors="pt")
        assert batch["image_grid_thw"].prod(-1).tolist() == counts.num_image_patches
        assert (batch["input_ids"] == processor.image_token_id).sum(-1).tolist() == counts.num_image_tokens


def test_token_counts_of_nothing_are_those_of_qwen_and_videos_are_refused(tiny_processor, qwen):
    assert tiny_processor._get_num_multimodal_tokens(video_sizes=[]).num_image_tokens is None
    for given in ({}, {"image_sizes": []}):
        ours, theirs = tiny_processor._get_num_multimodal_tokens(**given), qwen._get_num_multimodal_tokens(**given)
        assert (ours.num_image_tokens, ours.num_image_patches) == (theirs.num_image_tokens, theirs.num_image_patches)
    with pytest.raises(ValueError, match="video_sizes: SyVLA reads images only"):
        tiny_processor._get_num_multimodal_tokens(None, [(4, 32, 32)])
    with pytest.raises(ValueError, match="merge_size"):
        tiny_processor._get_num_multimodal_tokens([(32, 32)], merge_size=1)


def test_model_input_names_are_what_a_chat_gives(tiny_processor):
    batch = tiny_processor.apply_chat_template(CHATS["system"], **READY)
    assert set(batch) == set(tiny_processor.model_input_names)


def test_saving_keeps_everything(tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    for loaded in (AutoProcessor.from_pretrained(tmp_path), type(tiny_processor).from_pretrained(tmp_path)):
        assert type(loaded) is type(tiny_processor)
        ours, theirs = (p.apply_chat_template(CHATS["answers"], return_assistant_tokens_mask=True, **READY)
                        for p in (tiny_processor, loaded))  # fmt: skip
        assert set(ours) == set(theirs)
        # Where torchvision is installed, AutoImageProcessor takes its processor, whose resizing rounds in another way.
        same = type(loaded.image_processor) is type(tiny_processor.image_processor)
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, rtol=0, atol=1e-5 if same else 0.02, msg=key)


@pytest.mark.parametrize("name", ["num_query_token", "max_lenght", "foo", "do_resise"])
def test_an_unknown_keyword_at_loading_is_named(tiny_processor, tmp_path, name):
    tiny_processor.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(
        tmp_path, num_query_tokens=4, max_length=9, do_resize=True, use_fast=True, dtype="auto"
    )
    for auto in (AutoProcessor, type(tiny_processor)):
        with pytest.raises(TypeError, match=f"from_pretrained: unexpected keyword '{name}'"):
            auto.from_pretrained(tmp_path, **{name: 3})
    with pytest.raises(TypeError, match="num_query_token"):
        type(tiny_processor)(num_query_token=4)


# ---------------------------------------------------------------- pipelines


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.processing import build_tiny_processor

    path = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    SyVLAModel(SyVLAConfig.tiny()).save_pretrained(path)
    build_tiny_processor().save_pretrained(path)
    return path


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_pipelines_read_every_source(checkpoint, folder, server, task):
    """Greedy answers to the same picture from 16 places are one answer, which is that of `generate`."""
    if task == "any-to-any" and not is_torchvision_available():
        pytest.skip("transformers' any-to-any pipeline needs torchvision, whatever the model")
    answer = pipeline(task, model=str(checkpoint))
    chats = [[asked(make(folder, server), "What is it?")] for make in SOURCES.values()]

    def options(whole: bool = False) -> dict:
        return {"max_new_tokens": 4, "return_full_text": whole, "generate_kwargs": {"do_sample": False}}

    texts = {answer(text=chat, **options())[0]["generated_text"] for chat in chats}
    assert len(texts) == 1
    inputs = answer.processor.apply_chat_template(chats[0], add_generation_prompt=True, **READY)
    ids = answer.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert texts == {answer.processor.decode(ids, skip_special_tokens=True)}
    batch = answer(text=[chats[0], [asked("Hello")]], **options())
    assert {batch[0][0]["generated_text"]} == texts
    continued = answer(text=[*chats[0], asked("It is", role="assistant")], **options(True))
    assert continued[0]["generated_text"][-1]["content"][0]["text"].startswith("It is")
    plain = answer(
        images=str(folder / "a picture.png"), text="<|vision_start|><|image_pad|><|vision_end|>What?", **options()
    )
    assert set(plain[0]) == {"input_text", "generated_text"}

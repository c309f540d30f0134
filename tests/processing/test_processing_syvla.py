"""SyVLAProcessor: prompts, labels, views, states, actions, chats and saving."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2Tokenizer

from syvla.modeling_syvla import VIEWS, SyVLAConfig, SyVLAModel
from syvla.processing import SyVLAProcessor, build_tiny_processor
from syvla.processing.normalization import normalize
from syvla.processing.tiny_processor import build_tiny_tokenizer

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QUERIES = "<|action_query|>" * 8


def picture(value: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def rendered(processor, batch, row: int = 0) -> str:
    """The row's text without padding, with each run of image pads as '[n]'."""
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    text = processor.tokenizer.decode(ids)
    while "<|image_pad|>" in text:
        before, rest = text.split("<|image_pad|>", 1)
        count = 1
        while rest.startswith("<|image_pad|>"):
            rest, count = rest[len("<|image_pad|>") :], count + 1
        text = f"{before}[{count}]{rest}"
    return text


def labeled(processor, batch, row: int = 0) -> str:
    labels = batch["labels"][row]
    assert ((labels == -100) | (labels == batch["input_ids"][row])).all()
    return processor.tokenizer.decode(labels[labels != -100])


# ---------------------------------------------------------------- robot data


def test_prompt_of_an_observation(tiny_processor):
    batch = tiny_processor(
        images={"right_wrist": picture(1), "center": picture(2, 32, 64)},
        text="lift it",
        state=np.zeros(3),
        embodiment="arm",
    )
    view = "<|vision_start|>[{}]<|vision_end|>\n"
    assert rendered(tiny_processor, batch) == (
        f"{SYSTEM}<|im_start|>user\ncenter view: {view.format(8)}right wrist view: {view.format(4)}lift it<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "labels" not in batch
    assert "actions" not in batch
    assert batch["image_grid_thw"].tolist() == [[1, 4, 8], [1, 4, 4]], "in the order of the views, not of the dict"
    assert batch["mm_token_type_ids"].tolist() == (batch["input_ids"] == tiny_processor.image_token_id).int().tolist()


def test_thought_and_queries_follow_the_prompt_and_only_the_thought_is_learned(tiny_processor, make_item):
    with_thought = tiny_processor.collate([make_item(1, thought="  reach the cube ")])
    assert rendered(tiny_processor, with_thought).endswith(f"<|im_start|>assistant\nreach the cube<|im_end|>{QUERIES}")
    assert labeled(tiny_processor, with_thought) == "reach the cube<|im_end|>"
    without = tiny_processor.collate([make_item(1)])
    assert rendered(tiny_processor, without).endswith(f"<|im_start|>assistant\n{QUERIES}")
    assert without["labels"].eq(-100).all()
    acting = tiny_processor.collate([make_item(1, actions=None)])
    assert rendered(tiny_processor, acting).endswith("<|im_start|>assistant\n")
    thinking = tiny_processor.collate([make_item(1, actions=None, thought="go")])
    assert rendered(tiny_processor, thinking).endswith(f"assistant\ngo<|im_end|>{QUERIES}")
    assert "labels" not in thinking


def test_views_go_to_their_slots_in_order_and_missing_ones_are_masked(tiny_processor):
    every = {view: picture(50 + 50 * i) for i, view in enumerate(VIEWS)}
    full = tiny_processor(images=every, text="go", state=np.zeros(3), embodiment="arm")
    assert full["expert_view_mask"].tolist() == [[True, True, True]]
    levels = full["expert_pixel_values"][0].mean(dim=(1, 2, 3))
    torch.testing.assert_close(levels, torch.tensor([50.0, 100.0, 150.0]) / 127.5 - 1, atol=1e-3, rtol=0)
    some = {"right_wrist": every["right_wrist"], "center": every["center"], "left_wrist": None}
    part = tiny_processor(images=some, text="go", state=np.zeros(3), embodiment="arm")
    assert part["expert_view_mask"].tolist() == [[True, False, True]]
    for slot in (0, 2):
        assert torch.equal(part["expert_pixel_values"][0, slot], full["expert_pixel_values"][0, slot])
    listed = tiny_processor(
        images=[every["center"], every["left_wrist"]], text="go", state=np.zeros(3), embodiment="arm"
    )
    assert listed["expert_view_mask"].tolist() == [[True, True, False]]
    single = tiny_processor(images=every["center"], text="go", state=np.zeros(3), embodiment="arm")
    assert single["expert_view_mask"].tolist() == [[True, False, False]]


def test_pictures_arrive_as_they_are(tiny_processor, make_item):
    """PIL and array give the same; sizes may differ between views; gray and transparent PIL pictures become RGB."""
    item = make_item(1)
    as_pil = {view: Image.fromarray(image) for view, image in item["images"].items()}
    arrays, pil = (tiny_processor.collate([{**item, "images": images}]) for images in (item["images"], as_pil))
    for key, value in arrays.items():
        assert torch.equal(value, pil[key]), key
    expected = torch.from_numpy(item["images"]["center"]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(arrays["expert_pixel_values"][0, 0], expected, atol=1e-5, rtol=0)
    odd = {
        "center": picture(9, 48, 100),
        "left_wrist": Image.new("RGBA", (20, 30)),
        "right_wrist": Image.new("L", (64, 64)),
    }
    batch = tiny_processor.collate([{**item, "images": odd}])
    assert batch["expert_pixel_values"].shape == (1, 3, 3, 32, 32)
    assert batch["expert_view_mask"].all()


@pytest.mark.parametrize("mode", ["mean_std", "quantile", "min_max", "identity"])
def test_states_and_actions_are_normalized_padded_and_decoded_back(tiny_processor, make_item, mode):
    rng = np.random.default_rng(0)
    statistics = {}
    for kind, dim in (("state", 3), ("action", 2)):
        low = rng.normal(size=dim)
        statistics[kind] = {
            "mean": low + 0.5, "std": rng.uniform(0.5, 2, dim), "min": low - 1, "max": low + 2,
            "q01": low, "q99": low + 1,
        }  # fmt: skip
    tiny_processor.set_embodiment("arm", statistics, {"state": mode, "action": mode})
    item = make_item(2, "arm", actions=rng.normal(size=(6, 2)), action_is_pad=np.array([0, 0, 0, 0, 1, 1], bool))
    batch = tiny_processor.collate([item])
    assert batch["embodiment_ids"].tolist() == [1]
    assert batch["state"].shape == (1, 14)
    assert batch["state"][0, 3:].eq(0).all()
    np.testing.assert_allclose(batch["state"][0, :3], normalize(item["state"], statistics["state"], mode), rtol=1e-5)
    if mode == "quantile":  # independently: q01 -> -1, q99 -> 1
        q = statistics["action"]
        np.testing.assert_allclose(
            batch["actions"][0, :6, :2], 2 * (item["actions"] - q["q01"]) / (q["q99"] - q["q01"]) - 1, atol=1e-5
        )
    if mode == "mean_std":
        q = statistics["action"]
        np.testing.assert_allclose(batch["actions"][0, :6, :2], (item["actions"] - q["mean"]) / q["std"], atol=1e-5)
    assert batch["actions"].shape == (1, 8, 14)
    assert batch["actions"].dtype == torch.float32
    mask = np.zeros((8, 14), bool)
    mask[:4, :2] = True
    assert batch["action_mask"][0].numpy().tolist() == mask.tolist()
    decoded = tiny_processor.decode_actions(batch["actions"], "arm")
    assert decoded.shape == (1, 8, 2)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded[0, :6], item["actions"], atol=1e-5)
    np.testing.assert_array_equal(tiny_processor.decode_actions(batch["actions"][0].numpy(), "arm"), decoded[0])
    wide = tiny_processor.decode_actions(batch["actions"].to(torch.bfloat16).requires_grad_(), "arm")
    np.testing.assert_allclose(wide, decoded, atol=0.05)


def test_statistics_may_be_replaced_and_ids_stay(tiny_processor, make_item):
    before = tiny_processor.embodiments["arm"]["id"]
    one = {"mean": [0.0, 0.0], "std": [1.0, 1.0]}
    tiny_processor.set_embodiment(
        "arm", {"state": {"mean": [0] * 3, "std": [1] * 3}, "action": one}, control_hz=20, action_names=["x", "grip"]
    )
    entry = tiny_processor.embodiments["arm"]
    assert entry["id"] == before == 1
    assert (entry["control_hz"], entry["action_names"]) == (20, ["x", "grip"])
    item = make_item(3, "arm")
    np.testing.assert_allclose(tiny_processor.collate([item])["actions"][0, :, :2], item["actions"], atol=1e-6)


def test_a_nearly_constant_dimension_is_named_and_values_may_be_clipped(tiny_processor, caplog):
    """A joint that stood still at 1.5691 rad: 0 rad would become -5230."""
    still = {"mean": [0.0, 0.0, 1.5691], "std": [0.2, 0.2, 0.0003]}
    action = {"mean": [0.0, 0.5], "std": [0.2, 0.4]}
    names = {"state_names": ["shoulder", "elbow", "wrist"], "state_units": ["rad"] * 3}
    tiny_processor.set_embodiment("arm", {"state": still, "action": action}, **names)
    assert "state dimension 2 (wrist) is nearly constant: its spread 0.0003 rad is below 0.01 rad" in caplog.text
    item = {"text": "go", "images": {"center": picture(1)}, "embodiment": "arm", "state": np.array([0.2, 0.0, 0.0])}
    np.testing.assert_allclose(tiny_processor.collate([item])["state"][0, :3], [1, 0, -156.91], atol=1e-4)
    tiny_processor.set_embodiment("arm", {"state": still, "action": action}, **names, clip=5)
    batch = tiny_processor.collate([{**item, "actions": np.full((8, 2), 9.0)}])
    np.testing.assert_allclose(batch["state"][0, :3], [1, 0, -5], atol=1e-4)
    assert batch["actions"][0, :, :2].eq(5).all()
    caplog.clear()
    tiny_processor.set_embodiment("arm", {"state": still, "action": action}, **names, spread_floor={"state": 0})
    np.testing.assert_allclose(tiny_processor.collate([item])["state"][0, 2], -5230.33, atol=0.1)
    assert not caplog.text
    tiny_processor.set_embodiment("arm", {"state": still, "action": action}, spread_floor={"state": [0.1, 0.3, 0.5]})
    np.testing.assert_allclose(tiny_processor.collate([item])["state"][0, :3], [1, 0, -3.1382], atol=1e-4)
    for changes, message in (
        ({"clip": 0}, "clip: expected a positive number of spreads, such as 10, got 0"),
        ({"spread_floor": {"states": 1}}, "spread_floor: expected the keys state and action, got 'states'"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_processor.set_embodiment("arm", {"state": still, "action": action}, **changes)


def test_an_older_checkpoint_keeps_its_meaning(tiny_processor, tmp_path):
    """Its statistics have no floor, and none is added when it is loaded."""
    still = {"mean": [0.0, 0.0, 1.5691], "std": [0.2, 0.2, 0.0003]}
    tiny_processor.set_embodiment("arm", {"state": still, "action": {"mean": [0.0, 0.5], "std": [0.2, 0.4]}})
    for kind in ("state", "action"):
        tiny_processor.embodiments["arm"]["statistics"][kind].pop("floor")
    tiny_processor.save_pretrained(tmp_path)
    loaded = SyVLAProcessor.from_pretrained(tmp_path)
    assert loaded.embodiments == tiny_processor.embodiments
    item = {"text": "go", "images": {"center": picture(1)}, "embodiment": "arm", "state": np.zeros(3)}
    np.testing.assert_allclose(loaded.collate([item])["state"][0, 2], -5230.33, atol=0.1)


def test_batch_call_equals_collate(tiny_processor, unequal_items):
    expected = tiny_processor.collate(unequal_items)
    columns = {
        key: [item[key] for item in unequal_items]
        for key in ("images", "text", "state", "actions", "embodiment", "thought", "action_is_pad")
    }
    got = tiny_processor(**columns)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(got[key], value), key
    single = tiny_processor(**{key: value[1] for key, value in columns.items()})
    alone = tiny_processor.collate(unequal_items[1:2])
    for key, value in alone.items():
        assert torch.equal(single[key], value), key


def test_padding_goes_where_it_is_asked_for(tiny_processor, unequal_items):
    left, right = (tiny_processor.collate(unequal_items, padding_side=side) for side in ("left", "right"))
    for row in range(3):
        assert rendered(tiny_processor, left, row) == rendered(tiny_processor, right, row)
        length = int(left["attention_mask"][row].sum())
        assert left["attention_mask"][row, -length:].all()
        assert right["attention_mask"][row, :length].all()
    assert labeled(tiny_processor, left) == labeled(tiny_processor, right)
    texts = {
        "text": ["a", "b c d e"],
        "state": np.zeros((2, 3)),
        "embodiment": "arm",
        "images": [{"center": picture(1)}] * 2,
    }
    assert tiny_processor(**texts)["attention_mask"][0, 0] == 0, "left when acting"
    assert tiny_processor(**texts, actions=np.zeros((2, 8, 2)))["attention_mask"][0, 0] == 1, "right in training"
    with pytest.raises(ValueError, match="padding_side: expected 'left' or 'right', got 'top'"):
        tiny_processor.collate(unequal_items, padding_side="top")


def test_robots_and_chats_share_a_batch(tiny_processor, unequal_items, make_chat):
    items = [make_chat(1), *unequal_items[:2], make_chat(2, "Where?", "at (3, 4)", size=(64, 32))]
    batch = tiny_processor.collate(items)
    assert batch["embodiment_ids"].tolist() == [-1, 0, 1, -1]
    assert not batch["expert_view_mask"][[0, 3]].any()
    assert not batch["action_mask"][[0, 3]].any()
    assert labeled(tiny_processor, batch, 0) == "three<|im_end|>"
    assert labeled(tiny_processor, batch, 1) == f"{unequal_items[0]['thought']}<|im_end|>"
    assert labeled(tiny_processor, batch, 2) == ""
    assert labeled(tiny_processor, batch, 3) == "at (3, 4)<|im_end|>"
    queries = (batch["input_ids"] == tiny_processor.query_token_id).sum(-1)
    assert queries.tolist() == [0, 8, 8, 0]
    grids = [tiny_processor.collate([item])["image_grid_thw"] for item in items]
    assert torch.equal(batch["image_grid_thw"], torch.cat(grids))
    pixels = [tiny_processor.collate([item])["pixel_values"] for item in items]
    assert torch.equal(batch["pixel_values"], torch.cat(pixels))
    for row, item in enumerate(items):
        assert rendered(tiny_processor, batch, row) == rendered(tiny_processor, tiny_processor.collate([item]))
    chats = tiny_processor.collate([make_chat(1)])
    assert not {"state", "actions", "embodiment_ids", "expert_pixel_values"} & set(chats)


def test_expert_inputs_are_the_experts_part_of_a_batch(tiny_processor, unequal_items):
    whole, part = tiny_processor.collate(unequal_items), tiny_processor.expert_inputs(unequal_items)
    assert set(part) == {"expert_pixel_values", "expert_view_mask", "state", "embodiment_ids"}
    assert all(torch.equal(value, whole[name]) for name, value in part.items())


@pytest.mark.parametrize("views", [["front"], ["center", "wrist"], ["a", "b", "c", "d", "e"]], ids=len)
def test_any_number_of_views(views, make_item):
    config = SyVLAConfig.tiny(views=views)
    processor, model = build_tiny_processor(config), SyVLAModel(config).eval()
    one = {"mean": np.zeros(14), "std": np.ones(14)}
    processor.set_embodiment("tabletop", {"state": one, "action": one})
    assert processor.disagreements(config) == []
    images = {view: picture(20 * i) for i, view in enumerate(views, start=1)}
    item = make_item(1, images=dict(reversed(images.items())))
    batch = processor.collate([item])
    assert batch["expert_pixel_values"].shape == (1, len(views), 3, 32, 32)
    names = [line.split(" view")[0] for line in rendered(processor, batch).splitlines() if " view: " in line]
    assert names == views, "in the order of the config"
    assert model(**batch).loss.isfinite()
    acting = {key: item[key] for key in ("text", "state", "embodiment")}
    some = processor(images={views[-1]: images[views[-1]]}, **acting)
    assert some["expert_view_mask"].tolist() == [[False] * (len(views) - 1) + [True]]
    assert model.predict_actions(**some).actions.shape == (1, 8, 14)
    with pytest.raises(ValueError, match=f"at most {len(views)} views"):
        processor(images=[picture(1)] * (len(views) + 1), **acting)


# ---------------------------------------------------------------- chats


def test_answers_of_every_turn_are_learned(tiny_processor):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red "}, {"type": "text", "text": "cube."}]},
        {"role": "user", "content": "assistant\nWhere?"},
        {"role": "assistant", "content": "\n\n - left\n"},
    ]
    batch = tiny_processor.collate([{"messages": messages, "images": [picture(3)]}])
    assert labeled(tiny_processor, batch) == "A red cube.<|im_end|>- left<|im_end|>"


def test_answers_that_begin_with_line_breaks_are_learned(tiny_processor, make_chat):
    """Qwen's vocabulary has a token for two line breaks, which would swallow the one that ends the role."""
    tiny = build_tiny_tokenizer()
    words = {word: i for word, i in tiny.get_vocab().items() if i < 480}
    tokenizer = Qwen2Tokenizer(vocab={**words, "ĊĊ": 480}, merges=[("Ċ", "Ċ")])
    tokenizer.add_tokens([token for _, token in sorted(tiny.added_tokens_decoder.items())], special_tokens=True)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    assert len(tokenizer("\n\n")["input_ids"]) == 1
    processor = SyVLAProcessor(
        tiny_processor.image_processor, tokenizer, tiny_processor.expert_image_processor, num_query_tokens=8
    )
    batch = processor.collate([make_chat(1, answer="\n\n- one\n- two")])
    assert labeled(processor, batch) == "- one\n- two<|im_end|>"


def test_chats_without_pictures_and_with_several(tiny_processor):
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " or "}, {"type": "image"}]}
    answer = {"role": "assistant", "content": "second"}
    items = [
        {"messages": [{"role": "user", "content": "hi"}, answer], "images": []},
        {"messages": [asked, answer], "images": [picture(1), picture(2, 64, 32)]},
    ]
    batch = tiny_processor.collate(items)
    assert rendered(tiny_processor, batch, 0) == (
        f"{SYSTEM}<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nsecond<|im_end|>\n"
    )
    assert "[4]<|vision_end|> or <|vision_start|>[8]" in rendered(tiny_processor, batch, 1)
    only_text = tiny_processor.collate(items[:1])
    assert "pixel_values" not in only_text


def test_plain_use_through_apply_chat_template(tiny_processor, make_chat):
    """As with any vision-language processor of `transformers`: one chat, a batch of chats, and rendered text."""
    image = make_chat(1)["images"][0]
    asked = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": "What is it?"}]
    one = [{"role": "user", "content": asked}]
    two = [{"role": "user", "content": [{"type": "text", "text": "No picture here, just a somewhat longer text."}]}]
    batch = tiny_processor.apply_chat_template(
        [one, two], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    assert set(batch) == {"input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"}
    assert rendered(tiny_processor, batch, 0) == (
        f"{SYSTEM}<|im_start|>user\n<|vision_start|>[6]<|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered(tiny_processor, batch, 1) == (
        f"{SYSTEM}<|im_start|>user\nNo picture here, just a somewhat longer text.<|im_end|>\n<|im_start|>assistant\n"
    )
    prompt = tiny_processor.apply_chat_template(one, add_generation_prompt=True)
    by_hand = tiny_processor(text=prompt, images=[image], return_tensors="pt")
    single = tiny_processor.apply_chat_template(
        one, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    for key, value in by_hand.items():
        assert torch.equal(single[key], value), key
    assert tiny_processor.batch_decode(by_hand["input_ids"], skip_special_tokens=True)[0].endswith("assistant\n")


# ---------------------------------------------------------------- saving


def test_save_and_load_are_exact(tiny_processor, unequal_items, make_chat, tmp_path):
    tiny_processor.set_embodiment(
        "zeta", {k: {"mean": [0.1 + 0.2, 1e-17], "std": [1 / 3, 1e20]} for k in ("state", "action")}, control_hz=12.5
    )
    tiny_processor.save_pretrained(tmp_path)
    loaded = SyVLAProcessor.from_pretrained(tmp_path)
    assert loaded.embodiments == tiny_processor.embodiments
    for name in (
        "views",
        "num_query_tokens",
        "chunk_size",
        "max_length",
        "query_token",
        "query_token_id",
        "chat_template",
    ):
        assert getattr(loaded, name) == getattr(tiny_processor, name), name
    assert loaded.tokenizer.get_vocab() == tiny_processor.tokenizer.get_vocab()
    for items in (unequal_items, [make_chat(1), unequal_items[0]]):
        ours, theirs = tiny_processor.collate(items), loaded.collate(items)
        assert ours.keys() == theirs.keys()
        # Where torchvision is installed, AutoImageProcessor rounds a little differently.
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, rtol=0, atol=1e-5, msg=key)
    actions = torch.randn(2, 8, 14)
    np.testing.assert_array_equal(
        loaded.decode_actions(actions, "tabletop"), tiny_processor.decode_actions(actions, "tabletop")
    )
    loaded.save_pretrained(tmp_path / "again")
    first, second = ((folder / "processor_config.json").read_bytes() for folder in (tmp_path, tmp_path / "again"))
    assert first == second


def test_a_tokenizer_without_the_query_token_gets_it(tiny_processor):
    """As Qwen2.5-VL's own, whose first free id is then the default `query_token_id`."""
    base = Qwen2Tokenizer(vocab={chr(i): i - 32 for i in range(33, 127)}, merges=[])
    size = len(base)
    processor = SyVLAProcessor(tiny_processor.image_processor, base, tiny_processor.expert_image_processor)
    assert processor.query_token_id == size
    assert base.decode([size]) == "<|action_query|>"
    assert base("<|action_query|>" * 2)["input_ids"] == [size, size]

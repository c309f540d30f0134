"""Catalog of the Bagging task: six items, the vague wishes that each answers, and the frames around a wish.

Each item serves a purpose of its own (a drink, fruit, something sweet, three tools), and the wishes are worded so that
no other item of the catalog answers them. Wishes and frames come in two disjoint sets: seen (demonstrations,
in-domain evaluation) and unseen (out-of-distribution evaluation). The shapes are in `choice_shapes.ITEM_SHAPES`.
"""

from __future__ import annotations

from dataclasses import dataclass

SEEN_FRAMES = ("{}", "{}, pack something for me", "{}, put the right thing in the box")
UNSEEN_FRAMES = ("{}, what should I take along?", "listen: {}, please help", "choose for me, {}")


@dataclass(frozen=True)
class Item:
    """What an item is good for, in a word for the thought, and the wishes that it answers."""

    name: str
    purpose: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


CATALOG: tuple[Item, ...] = (
    Item(
        "bottle",
        "drink",
        ("I am thirsty", "I want a drink", "my mouth is dry", "I need some water"),
        ("my throat is parched", "it is so hot that I sweat", "I feel dehydrated"),
    ),
    Item(
        "apple",
        "fruit",
        ("I want some fruit", "I need vitamins", "I want a healthy snack", "I want to eat something fresh"),
        ("one a day keeps the doctor away", "I am on a diet but hungry", "I am making a fruit salad"),
    ),
    Item(
        "chocolate",
        "sweet",
        ("I want something sweet", "I have a sweet tooth", "I want some candy", "I need sugar"),
        ("I crave cocoa", "only dessert can cheer me up", "I want a treat for my valentine"),
    ),
    Item(
        "hammer",
        "nail",
        ("I have to drive in a nail", "this nail sticks out", "I want to hang a picture", "I need a heavy tool"),
        ("the tent peg will not go in", "I am building a bird house", "I must crack a walnut"),
    ),
    Item(
        "marker",
        "write",
        ("I want to write", "I have to sign a form", "I want to draw", "I need to label a jar"),
        ("I must jot down a number", "time to sketch a portrait", "the whiteboard is still empty"),
    ),
    Item(
        "sponge",
        "clean",
        ("I spilled my milk", "the plate is dirty", "I have to wash up", "the sink needs a scrub"),
        ("there is a stain on the desk", "I want to soak up a puddle", "the pans are greasy"),
    ),
)


def requests(item: Item, *, unseen_wish: bool, unseen_phrasing: bool) -> list[str]:
    """Every instruction that asks for an item with a seen or an unseen wish in a seen or an unseen frame."""
    wishes = item.unseen if unseen_wish else item.seen
    frames = UNSEEN_FRAMES if unseen_phrasing else SEEN_FRAMES
    return [frame.format(wish) for wish in wishes for frame in frames]

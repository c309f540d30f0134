"""Catalog of the Bagging task: a wish belongs to one item, and seen and unseen share nothing."""

from itertools import product

from syvla.evaluation.environments.tabletop.bagging_catalog import CATALOG, SEEN_FRAMES, UNSEEN_FRAMES, requests
from syvla.evaluation.environments.tabletop.choice_shapes import ITEM_SHAPES


def test_every_item_has_a_shape_of_its_own():
    assert [item.name for item in CATALOG] == list(ITEM_SHAPES)
    assert len({shape.core for shape in ITEM_SHAPES.values()}) == len(CATALOG)
    assert all(shape.grip_width <= 0.06 for shape in ITEM_SHAPES.values())  # meters; an open gripper has 0.10


def test_a_wish_names_neither_its_item_nor_belongs_to_two():
    wishes = [(wish, item) for item in CATALOG for wish in (*item.seen, *item.unseen)]
    assert len({wish for wish, _ in wishes}) == len(wishes)
    for wish, item in wishes:
        assert item.name not in wish
        assert wish.isascii()


def test_sets_of_instructions_are_disjoint():
    sets = [
        {text for item in CATALOG for text in requests(item, unseen_wish=wish, unseen_phrasing=phrasing)}
        for wish, phrasing in product((False, True), repeat=2)
    ]
    assert len(set().union(*sets)) == sum(map(len, sets))
    assert not set(SEEN_FRAMES) & set(UNSEEN_FRAMES)
    assert [len(group) for group in sets] == [6 * 4 * 3, 6 * 4 * 3, 6 * 3 * 3, 6 * 3 * 3]

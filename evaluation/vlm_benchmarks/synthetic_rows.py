"""Rows of the five synthetic benchmarks: the official columns, filled with questions about small drawn scenes.

Columns are those of the Hub datasets as lmms-eval 0.7.3 reads them. Answers follow from the drawing alone, and no constant
answer is right more often than chance.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from .synthetic_scenes import COLORS, DARK, KINDS, LIGHT, NUMBER_WORDS, Shape, draw, spots

Row = dict[str, Any]
SIDES = (32, 48, 64)  # unequal, so that batches have something to pad

MME_CATEGORIES = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
MME_SUFFIX = " Please answer yes or no."
_SUBJECTS = ("Art", "Accounting", "Biology", "Clinical_Medicine", "History", "Computer_Science")


def docvqa_rows(rng: random.Random, count: int) -> list[Row]:
    """Pages with a printed digit and a colored stamp."""
    rows = []
    for i in range(count):
        color, kind, digit = rng.choice(list(COLORS)), rng.choice(KINDS), rng.randrange(10)
        number_left = rng.random() < 0.5
        stamp = Shape(kind, color, 0.75 if number_left else 0.25, 0.5)
        page = draw(rng, _side(rng), [stamp], digit, 0.25 if number_left else 0.75)
        question, answer = (
            ("What is the color of the stamp?", color),
            ("What shape is the stamp?", kind),
            ("What number is printed on the page?", str(digit)),
        )[i % 3]
        rows.append(
            {
                "questionId": str(i),
                "question": question,
                "question_types": ["form" if i % 3 == 2 else "figure/diagram"],
                "image": page,
                "docId": i,
                "ucsf_document_id": f"synthetic{i}",
                "ucsf_document_page_no": "1",
                "answers": [answer],
                "data_split": "val",
            }
        )
    return rows


def ai2d_rows(rng: random.Random, count: int) -> list[Row]:
    """Diagrams of two shapes, with four options."""
    rows = []
    for i in range(count):
        question, options, answer, picture = _multiple_choice(rng, i)
        rows.append({"question": question, "options": options, "answer": str(options.index(answer)), "image": picture})
    return rows


def mmmu_rows(rng: random.Random, count: int) -> list[Row]:
    """Multiple choice, counting in digits (open), and comparing two images, in turn."""
    rows = []
    for i in range(count):
        subject = _SUBJECTS[i % len(_SUBJECTS)]
        row: Row = {f"image_{k}": None for k in range(1, 8)}
        row |= {
            "id": f"validation_{subject}_{i + 1}",
            "explanation": "",
            "img_type": "['Diagrams']",
            "topic_difficulty": "Easy",
            "subfield": subject,
            "question_type": "multiple-choice",
        }
        if i % 3 == 0:
            question, options, answer, row["image_1"] = _multiple_choice(rng, i // 3)
            row |= {
                "question": f"<image 1> {question}",
                "options": str(options),
                "answer": "ABCD"[options.index(answer)],
            }
        elif i % 3 == 1:
            number, color, kind = rng.randint(1, 5), rng.choice(list(COLORS)), rng.choice(KINDS)
            row["image_1"] = draw(rng, _side(rng), [Shape(kind, color, x, y, 0.1) for x, y in spots(rng, number)])
            row |= {"question": f"<image 1> How many {kind}s are there?", "options": "[]", "answer": str(number)}
            row["question_type"] = "open"
        else:
            same = rng.random() < 0.5
            first = rng.choice(list(COLORS))
            second = first if same else _other(rng, COLORS, first)
            row["image_1"] = draw(rng, _side(rng), [Shape(rng.choice(KINDS), first, 0.5, 0.5, 0.3)])
            row["image_2"] = draw(rng, _side(rng), [Shape(rng.choice(KINDS), second, 0.5, 0.5, 0.3)])
            options = ["same", "different"] if rng.random() < 0.5 else ["different", "same"]
            row |= {
                "question": "<image 1> <image 2> Are the colors of the two shapes the same or different?",
                "options": str(options),
                "answer": "AB"[options.index("same" if same else "different")],
            }
        rows.append(row)
    return rows


def mme_rows(rng: random.Random, count: int) -> list[Row]:
    """Pairs of a yes and a no about one picture; the categories in turn. An odd count is rounded up to whole pairs."""
    rows = []
    for pair in range((count + 1) // 2):
        category = MME_CATEGORIES[pair % len(MME_CATEGORIES)]
        picture, yes, no = _mme_pair(rng, category)
        for question, answer in ((yes, "Yes"), (no, "No")):
            rows.append(
                {
                    "question_id": f"{category}/{pair:05d}.png",
                    "image": picture,
                    "question": question + MME_SUFFIX,
                    "answer": answer,
                    "category": category,
                }
            )
    return rows


def hallusion_rows(rng: random.Random, count: int) -> list[Row]:
    """Sets of two figures and two questions whose answers the second figure turns round; VD and VS in turn.

    A count that is no multiple of four ends in the middle of a set.
    """
    rows: list[Row] = []
    for index in range((count + 3) // 4):
        visual_supplement = index % 2 == 1
        first, kind = rng.choice(list(COLORS)), rng.choice(KINDS)
        second = _other(rng, COLORS, first)
        for figure, shown in enumerate((first, second)):
            picture = draw(rng, _side(rng), [Shape(kind, shown, 0.5, 0.5, 0.3)])
            number = figure + 1 if visual_supplement else figure  # figure 0 of VS has no image and is in another split
            for question_id, asked in enumerate((first, second)):
                right = asked == shown
                rows.append(
                    {
                        "category": "VS" if visual_supplement else "VD",
                        "subcategory": "chart" if visual_supplement else "figure",
                        "visual_input": str(figure + 1),
                        "set_id": str(index),
                        "figure_id": str(number),
                        "sample_note": "synthetic",
                        "question_id": str(question_id),
                        "question": f"Is the {kind} in the image {asked}?",
                        "gt_answer_details": f"The {kind} in the image is {shown}.",
                        "gt_answer": "1" if right else "0",
                        "filename": f"./{'VS' if visual_supplement else 'VD'}/synthetic/{index}_{number}.png",
                        "image": picture,
                    }
                )
    return rows[:count]


ROWS: dict[str, Callable[[random.Random, int], list[Row]]] = {
    "docvqa": docvqa_rows,
    "ai2d": ai2d_rows,
    "mmmu": mmmu_rows,
    "mme": mme_rows,
    "hallusionbench": hallusion_rows,
}


def _side(rng: random.Random) -> int:
    return rng.choice(SIDES)


def _other(rng: random.Random, values: Any, but: Any) -> Any:
    return rng.choice([value for value in values if value != but])


def _multiple_choice(rng: random.Random, turn: int) -> tuple[str, list[str], str, Any]:
    """Question, four options, the right one, picture."""
    if turn % 3 == 2:
        number, color, kind = rng.randint(1, 4), rng.choice(list(COLORS)), rng.choice(KINDS)
        picture = draw(rng, _side(rng), [Shape(kind, color, x, y, 0.1) for x, y in spots(rng, number)])
        options = ["1", "2", "3", "4"]
        rng.shuffle(options)
        return f"How many {kind}s are in the diagram?", options, str(number), picture
    left, right = rng.sample(list(COLORS), 2)
    kinds = rng.sample(KINDS, 2)
    shapes = [Shape(kinds[0], left, 0.25, 0.5), Shape(kinds[1], right, 0.75, 0.5)]
    picture = draw(rng, _side(rng), shapes)
    rest = [color for color in COLORS if color not in (left, right)]
    options = [left, right, *rng.sample(rest, 2)]
    rng.shuffle(options)
    which = rng.randrange(2)
    if turn % 3 == 0:
        return f"What is the color of the {kinds[which]}?", options, (left, right)[which], picture
    side = ("left", "right")[which]
    return f"What is the color of the shape on the {side}?", options, (left, right)[which], picture


def _mme_pair(rng: random.Random, category: str) -> tuple[Any, str, str]:
    """Picture, a question whose answer is yes and one whose answer is no, without the suffix."""
    color, kind = rng.choice(list(COLORS)), rng.choice(KINDS)
    wrong_color, wrong_kind = _other(rng, COLORS, color), _other(rng, KINDS, kind)
    digit = rng.randrange(9)
    wrong_digit = _other(rng, range(9), digit)
    shape = [Shape(kind, color, 0.5, 0.5, 0.3)]
    if category in ("existence", "color", "posters", "celebrity", "landmark", "artwork"):
        by_color = {
            "color": "Is the color of the shape in the image {}?",
            "posters": "Is the poster in the image printed in {}?",
            "landmark": "Is this a photo of the {} tower?",
        }
        by_kind = {
            "existence": "Is there a {} in this image?",
            "celebrity": "Is the figure in the image called {}?",
            "artwork": "Does this artwork show a {}?",
        }
        template = by_color.get(category) or by_kind[category]
        right, wrong = (color, wrong_color) if category in by_color else (kind, wrong_kind)
        return draw(rng, _side(rng), shape), template.format(right), template.format(wrong)
    if category in ("count", "numerical_calculation"):
        number = rng.randint(2, 5)
        other = _other(rng, range(2, 6), number)
        picture = draw(rng, _side(rng), [Shape(kind, color, x, y, 0.1) for x, y in spots(rng, number)])
        template = (
            "Are there {} shapes in this image?"
            if category == "count"
            else "Is the sum of all the shapes in the image {}?"
        )
        names = NUMBER_WORDS if category == "count" else [str(n) for n in range(10)]
        return picture, template.format(names[number]), template.format(names[other])
    if category == "position":
        left = rng.random() < 0.5
        picture = draw(rng, _side(rng), [Shape(kind, color, 0.25 if left else 0.75, 0.5)])
        sides = ("left", "right") if left else ("right", "left")
        return picture, *(f"Is the {kind} on the {side} side of the image?" for side in sides)
    if category == "scene":
        night = rng.random() < 0.5
        picture = draw(rng, _side(rng), shape, background=DARK if night else LIGHT)
        times = ("night", "day") if night else ("day", "night")
        return picture, *(f"Is this picture taken at {time}?" for time in times)
    if category == "commonsense_reasoning":
        go = rng.random() < 0.5
        light = draw(rng, _side(rng), [Shape("circle", "green" if go else "red", 0.5, 0.5, 0.3)], background=DARK)
        acts = ("go", "stop") if go else ("stop", "go")
        return light, *(f"Should I {act} when I see this light?" for act in acts)
    picture = draw(rng, _side(rng), digit=digit, digit_x=0.5)
    template = {
        "OCR": "Is the number in the image {}?",
        "text_translation": "Is the number in the image called {} in English?",
        "code_reasoning": "The code adds 1 to the number in the image. Is its output {}?",
    }[category]
    if category == "text_translation":
        return picture, template.format(NUMBER_WORDS[digit]), template.format(NUMBER_WORDS[wrong_digit])
    plus = 1 if category == "code_reasoning" else 0
    return picture, template.format(digit + plus), template.format(wrong_digit + plus)

"""Whether a benchmark's own scoring can read an answer at all; a model that cannot be read is not a model that is wrong."""

from __future__ import annotations

import ast
import random
import re
from typing import Any

from .yes_no_rule import yes_or_no


def is_unparsable(name: str, row: dict[str, Any], answer: str, judged: bool = False) -> bool:
    """True if the answer to a row of benchmark `name` has no option letter, no yes or no, or no text at all.

    The readers are the benchmarks' own, as strict as they are: AI2D's reads "A." but not "The answer is A.". A judge of
    HallusionBench (`judged`) reads any text.
    """
    if name == "mme":
        from lmms_eval.tasks.mme.utils import parse_pred_ans

        unparsable: bool = parse_pred_ans(answer) == "other"
        return unparsable
    if name == "ai2d":
        letters = "ABCDEFGHIJ"[: len(row["options"])]
        starts_with_letter = re.match(r"^\s*([A-Z])\.", answer)
        option = starts_with_letter[1] if starts_with_letter else re.sub(r"[^\w]", "", answer).upper()
        return option not in list(letters)
    if name == "mmmu" and row["question_type"] == "multiple-choice":
        return _draws_a_letter(ast.literal_eval(row["options"]), answer)
    if name == "hallusionbench" and not judged:
        return yes_or_no(answer) is None
    return not answer.strip()


def _draws_a_letter(options: list[str], answer: str) -> bool:
    """Whether MMMU's reader takes a random letter, seen by whether it moves the random generator."""
    from lmms_eval.tasks.mmmu.utils import get_multi_choice_info, parse_multi_choice_response

    index_to_answer, letters = get_multi_choice_info(options)
    state = random.getstate()
    parse_multi_choice_response(answer, letters, index_to_answer)
    drawn = random.getstate() != state
    random.setstate(state)
    return drawn

"""Arithmetic instructions: what is asked has the answer that is said, and seen and unseen share nothing."""

import re
from itertools import product

import pytest

from syvla.evaluation.environments.tabletop.arithmetic_instructions import PROBLEMS, Problem, problems, questions


def value(question):
    """The answer of a question, read from its words alone."""
    first, second = map(int, re.findall(r"\d+", question))
    if any(word in question for word in ("plus", "+", "sum", "added")):
        return first + second
    return second - first if "taken from" in question else first - second


@pytest.mark.parametrize("unseen", [False, True])
def test_every_question_has_the_answer_of_its_problem(unseen):
    for problem in PROBLEMS:
        assert 0 <= problem.answer <= 9
        assert problem.reasoning.endswith(f" is {problem.answer}")
        for question in questions(problem, unseen=unseen):
            assert value(question) == problem.answer
            assert question.isascii()


def test_no_unseen_problem_follows_from_a_seen_one_by_turning_it_around():
    seen = {problem.family for problem in PROBLEMS if not problem.unseen}
    unseen = {problem.family for problem in PROBLEMS if problem.unseen}
    assert seen
    assert unseen
    assert not seen & unseen
    related = [Problem("plus", 3, 4), Problem("plus", 4, 3), Problem("minus", 7, 3), Problem("minus", 7, 4)]
    assert {problem.family for problem in related} == {(3, 4)}


def test_both_sets_have_every_answer_and_together_all_problems():
    assert len(PROBLEMS) == len(set(PROBLEMS)) == 155
    both = [
        problem for answer, unseen in product(range(10), (False, True)) for problem in problems(answer, unseen=unseen)
    ]
    assert sorted(both, key=repr) == sorted(PROBLEMS, key=repr)
    assert all(problems(answer, unseen=unseen) for answer in range(10) for unseen in (False, True))
    assert sum(problem.unseen for problem in PROBLEMS) == 53


def test_sets_of_instructions_are_disjoint():
    sets = [
        {
            question
            for problem in PROBLEMS
            if problem.unseen == expression
            for question in questions(problem, unseen=phrasing)
        }
        for expression, phrasing in product((False, True), repeat=2)
    ]
    assert len(set().union(*sets)) == sum(map(len, sets))

"""Instructions of the Calculating task: sums and differences with one-digit answers, and the ways to ask for them.

Both come in two disjoint sets: seen (demonstrations, in-domain evaluation) and unseen (out-of-distribution evaluation).

- A problem belongs to a fact family, the unordered pair of numbers that add up to its largest: 3 + 4, 4 + 3, 7 - 3 and
  7 - 4 are the family {3, 4}. A family is unseen where its two numbers differ by a multiple of 3, so that no fact of an
  unseen problem was met in another order or as its inverse. 53 of the 155 problems are unseen; both sets have every
  answer from 0 to 9.
- A phrasing is a frame around the problem and a form of the problem; unseen ones use other frames and other words.
"""

from __future__ import annotations

from dataclasses import dataclass

SEEN_FRAMES = ("what is {}?", "choose the block that shows {}", "calculate {}", "put the answer of {} on the pad")
UNSEEN_FRAMES = ("how much is {}?", "bring the result of {} to the pad", "work out {} and place the block")
SEEN_FORMS = {"plus": ("{a} plus {b}", "{a} + {b}"), "minus": ("{a} minus {b}", "{a} - {b}")}
UNSEEN_FORMS = {
    "plus": ("the sum of {a} and {b}", "{b} added to {a}"),
    "minus": ("the difference of {a} and {b}", "{b} taken from {a}"),
}


@dataclass(frozen=True)
class Problem:
    """`first` plus or minus `second` (`operation`); the answer has one digit."""

    operation: str
    first: int
    second: int

    @property
    def answer(self) -> int:
        """The digit to look for."""
        return self.first + self.second if self.operation == "plus" else self.first - self.second

    @property
    def family(self) -> tuple[int, int]:
        """The two numbers, smaller first, that add up to the largest number of the problem."""
        low, high = sorted((self.second, self.first if self.operation == "plus" else self.answer))
        return low, high

    @property
    def unseen(self) -> bool:
        """Whether the problem is kept for out-of-distribution evaluation."""
        low, high = self.family
        return (high - low) % 3 == 0

    @property
    def reasoning(self) -> str:
        """The answer in words, whatever the words of the question."""
        return f"{self.first} {self.operation} {self.second} is {self.answer}"


PROBLEMS: tuple[Problem, ...] = tuple(
    problem
    for operation in ("plus", "minus")
    for first in range(19)
    for second in range(10)
    if 0 <= (problem := Problem(operation, first, second)).answer <= 9
)
"""All problems: sums up to 9, and differences from 0 to 9 where what is taken away has one digit."""


def problems(answer: int, *, unseen: bool) -> list[Problem]:
    """The seen or the unseen problems with one answer."""
    return [problem for problem in PROBLEMS if problem.answer == answer and problem.unseen == unseen]


def questions(problem: Problem, *, unseen: bool) -> list[str]:
    """Every seen or unseen way to ask for a problem."""
    frames, forms = (UNSEEN_FRAMES, UNSEEN_FORMS) if unseen else (SEEN_FRAMES, SEEN_FORMS)
    return [
        frame.format(form.format(a=problem.first, b=problem.second))
        for frame in frames
        for form in forms[problem.operation]
    ]

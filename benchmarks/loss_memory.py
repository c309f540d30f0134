"""Memory of the loss of answers, by chunks of tokens and with all logits at once: `python -m benchmarks.loss_memory`.

Counted at the size of Qwen2.5-VL-3B's head (151,936 tokens, 2048 wide) on tensors that have shapes and no numbers, forward and
backward under bfloat16 autocast; and measured, in a process of its own for each, on a real head of an eighth of the width,
which keeps the vocabulary, and so the logits. Bytes are those beyond hidden states and weight, gradients included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.memory import MALLOC
from benchmarks.process_memory import measure_memory
from benchmarks.reporting import print_table, write_result
from benchmarks.shape_only import LiveBytes, shapes_of
from syvla.modeling_syvla.chunked_cross_entropy import token_losses

VOCABULARY, WIDTH = 151_936, 2048
SMALL = 256
TOKENS = (200, 500, 1100, 4000)


def all_at_once(head: nn.Module, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What `token_losses` is without chunks."""
    return F.cross_entropy(head(hidden).float(), target, reduction="none")


WAYS: dict[str, Callable[..., torch.Tensor]] = {"all at once": all_at_once, "by chunks": token_losses}


def run(way: str, head: nn.Module, hidden: torch.Tensor, target: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = WAYS[way](head, hidden, target).sum()
    loss.backward()


def make(tokens: int, width: int, trained: bool) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    head = nn.Linear(width, VOCABULARY, bias=False).requires_grad_(trained)
    target = torch.arange(tokens) % VOCABULARY
    return head, torch.zeros(tokens, width, dtype=torch.bfloat16, requires_grad=True), target


def counted(way: str, tokens: int, width: int, trained: bool) -> int:
    """Bytes at most during loss and backward pass, beyond what is there before."""
    head, fake = shapes_of(lambda: nn.Linear(width, VOCABULARY, bias=False), lambda _: torch.float32)
    head.requires_grad_(trained)
    hidden = fake({"x": torch.zeros(tokens, width, dtype=torch.bfloat16)})["x"].requires_grad_()
    with LiveBytes() as live:
        live.add(list(head.parameters()), hidden)
        before = live.now
        run(way, head, hidden, torch.arange(tokens) % VOCABULARY)
        return live.peak - before


def measured(way: str, tokens: int, trained: bool) -> int:
    """The same of a real, narrow head on this machine."""
    command = [sys.executable, "-m", "benchmarks.loss_memory", "--measure", way, str(tokens), str(trained)]
    done = subprocess.run(command, env={**os.environ, **MALLOC}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {done.returncode}: {done.stderr[-2000:]}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def _measure_here(way: str, tokens: int, trained: bool) -> int:
    small = make(8, SMALL, trained)
    run(way, *small)  # kernels and their buffers
    parts = make(tokens, SMALL, trained)
    memory = measure_memory(lambda: run(way, *parts), "cpu")
    if memory is None:
        raise SystemExit("the system does not say how much memory a process holds; this needs Linux")
    return memory.peak - memory.before


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS), help="answer tokens of a batch")
    parser.add_argument("--measured-tokens", type=int, default=1100, help="of the measured loss; 0: none is measured")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        way, tokens, trained = options.measure
        print(_measure_here(way, int(tokens), trained == "True"))
        return
    rows: list[dict[str, Any]] = [
        {
            "head": "trained" if trained else "frozen",
            "tokens": n,
            **{way: counted(way, n, WIDTH, trained) for way in WAYS},
        }
        for trained in (True, False)
        for n in options.tokens
    ]
    print_table(["head", "answer tokens", *WAYS], [[r["head"], r["tokens"], *(r[w] / 1e9 for w in WAYS)] for r in rows])
    checks = []
    for trained in (True, False) if options.measured_tokens else ():
        for way in WAYS:
            figures = {
                "counted": counted(way, options.measured_tokens, SMALL, trained),
                "measured": measured(way, options.measured_tokens, trained),
            }
            checks.append({"head": "trained" if trained else "frozen", "way": way, **figures})
            print(f"{checks[-1]['head']}, {way}: counted / measured = {figures['counted'] / figures['measured']:.3f}")
    print(write_result("loss_memory", {"settings": vars(options), "table": rows, "checks": checks}))


if __name__ == "__main__":
    main()

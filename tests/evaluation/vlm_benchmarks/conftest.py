"""Synthetic benchmarks on disk, a tiny checkpoint whose answers differ, and answers that need no model."""

import os
import random

import pytest
import torch

from syvla.evaluation.vlm_benchmarks.synthetic_data import write_benchmarks
from syvla.evaluation.vlm_benchmarks.synthetic_rows import ROWS as MAKE_ROWS
from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import build_tiny_processor

ROWS = 28  # one pair of each of MME's 14 categories


@pytest.fixture(scope="session")
def lmms_eval():
    """lmms-eval with a cache of its own; skips where it is not installed (scripts/install_test_peers.sh)."""
    return pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: scripts/install_test_peers.sh")


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    os.environ["LMMS_EVAL_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets_cache"))
    yield
    del os.environ["LMMS_EVAL_DATASETS_CACHE"]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("data"), ROWS, seed=11)


@pytest.fixture(scope="session")
def rows():
    """The rows of `data_root` by benchmark, drawn again from their seed."""
    return {name: make(random.Random(f"benchmark/{name}/11"), ROWS) for name, make in MAKE_ROWS.items()}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Untrained, with layers stronger than at initialization: a tied head would only repeat the last token."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = SyVLAConfig.tiny()
    torch.manual_seed(0)
    model = SyVLAModel(config)
    for name, parameter in model.vlm.model.named_parameters():
        if parameter.ndim == 2 and ".layers." in name:
            parameter.data.mul_(8.0)
    model.save_pretrained(folder)
    build_tiny_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fixed_answers(lmms_eval, checkpoint):
    """`fixed_answers(function)`: a generator that answers `function(task, doc_id)` without asking the model."""
    from syvla.evaluation.vlm_benchmarks.answer_generation import AnswerGenerator
    from syvla.evaluation.vlm_benchmarks.answer_log import Answer
    from syvla.evaluation.vlm_benchmarks.model_loading import load_generator

    loaded = load_generator(str(checkpoint), progress=False)

    class Fixed(AnswerGenerator):
        def _generate(self, batch, inputs):
            return [Answer(q.task, q.doc_id, p.digest, "", self.say(q.task, q.doc_id), 1) for q, p in batch]

    def make(say):
        generator = Fixed(loaded.model, loaded.renderer, progress=False)
        generator.say = say
        return generator

    return make

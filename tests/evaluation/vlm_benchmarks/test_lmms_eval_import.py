"""lmms-eval changes other libraries for its own ends; those who use them beside it must not notice."""

import io
import pickle
import ssl

import filelock
import pytest
from PIL import Image, ImageFile

from syvla.evaluation.vlm_benchmarks.lmms_eval_import import contained_changes, require_lmms_eval

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; scripts/install_test_peers.sh installs it")


def check_that_nothing_changed(folder) -> None:
    content = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(content, "png")
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(content.getvalue()[:-600])).load()
    with filelock.FileLock(folder / "lock"), pytest.raises(filelock.Timeout):
        filelock.FileLock(folder / "lock", timeout=0, thread_local=False).acquire(timeout=0)
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(ssl.create_default_context())


@pytest.mark.slow
def test_importing_and_running_it_leaves_other_libraries_as_they_were(tmp_path):
    require_lmms_eval()
    check_that_nothing_changed(tmp_path)
    from lmms_eval.evaluator import _enable_reentrant_filelocks

    with contained_changes():
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        _enable_reentrant_filelocks()
        ssl.SSLContext._orig_reduce = True
        ssl.SSLContext.__reduce__ = lambda self: (ssl.SSLContext, (self.protocol,))
        assert filelock.FileLock(tmp_path / "a") is filelock.FileLock(tmp_path / "a"), "in force where it is wanted"
    check_that_nothing_changed(tmp_path)

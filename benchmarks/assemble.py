"""Peak memory and time of assembling a checkpoint, streamed and in memory: `python -m benchmarks.assemble`.

The source is a random Qwen2.5-VL checkpoint of a few hundred MB in small shards. Each way runs in a process of its own;
what that process needs for its imports alone is measured too and subtracted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.reporting import print_table, write_result

SHARD = "50MB"


def vlm_config(layers: int) -> dict[str, Any]:
    """About 90 MB of embeddings and 11 MB per layer in bfloat16."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    return {
        "tie_word_embeddings": True,
        "image_token_id": 1,
        "video_token_id": 2,
        "vision_start_token_id": 3,
        "vision_end_token_id": 4,
        "text_config": {
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": layers,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 60000,
            "eos_token_id": 5,
            "pad_token_id": 6,
            "bos_token_id": 6,
            "rope_parameters": rope,
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 2,
            "out_hidden_size": 768,
            "fullatt_block_indexes": [1],
        },
    }


def make_sources(folder: Path, layers: int) -> None:
    """Random checkpoints `vlm` and `siglip`."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, SiglipVisionConfig, SiglipVisionModel

    Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**vlm_config(layers))).to(torch.bfloat16).save_pretrained(
        folder / "vlm", max_shard_size=SHARD
    )
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
    SiglipVisionModel(SiglipVisionConfig(**sizes)).save_pretrained(folder / "siglip")


OVERRIDES = {
    "query_token_id": 7,
    "expert_config": {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8},
}


def run(way: str, folder: Path, layers: int) -> None:
    """One way, in the process that is measured; prints peak memory in bytes and seconds.

    A process inherits its parent's peak, so the parent must stay small: the sources are made by a child as well.
    """
    import resource

    import torch

    import syvla
    from syvla.modeling_syvla.assemble import assemble_checkpoint, from_vlm
    from syvla.modeling_syvla.export_vlm import export_vlm

    torch.set_num_threads(1)
    parts = (folder / "vlm", folder / "siglip")
    start = time.perf_counter()
    if way == "sources":
        make_sources(folder, layers)
    elif way == "streamed":
        assemble_checkpoint(*parts, folder / "streamed", config_overrides=OVERRIDES, max_shard_size=SHARD)
    elif way == "export, streamed":
        export_vlm(folder / "streamed", folder / "exported", max_shard_size=SHARD)
    elif way == "in memory":
        from_vlm(*parts, config_overrides=OVERRIDES).save_pretrained(folder / "in_memory", max_shard_size=SHARD)
    elif way == "imports":
        # The code that is loaded when it is first used: the classes of both parts, the auto classes.
        with torch.device("meta"):
            syvla.SyVLAModel(syvla.SyVLAConfig(**OVERRIDES))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "seconds": seconds}))


def measure(way: str, folder: Path, layers: int) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.assemble",
        "--run",
        way,
        "--folder",
        str(folder),
        "--layers",
        str(layers),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="layers of the source VLM, about 11 MB each")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.folder, options.layers)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure("sources", folder, options.layers)
        names = ("imports", "streamed", "in memory", "export, streamed")
        ways = {way: measure(way, folder, options.layers) for way in names}
        sizes = {
            part: sum(path.stat().st_size for path in (folder / part).glob("*.safetensors"))
            for part in ("vlm", "siglip", "streamed")
        }
        tensor = max_tensor_bytes(folder / "vlm")
    base = ways.pop("imports")["peak"]
    above = {way: figures["peak"] - base for way, figures in ways.items()}
    rows = [[way, above[way] / 1e6, above[way] / sizes["streamed"], ways[way]["seconds"]] for way in ways]
    print_table(["way", "MB above imports", "of the checkpoint", "seconds"], rows)
    print(f"checkpoint {sizes['streamed'] / 1e6:.0f} MB, shards {SHARD}, largest tensor {tensor / 1e6:.0f} MB")
    result = {
        "peak_bytes_above_imports": above,
        "import_bytes": base,
        "seconds": {way: figures["seconds"] for way, figures in ways.items()},
        "checkpoint_bytes": sizes["streamed"],
        "source_bytes": sizes["vlm"] + sizes["siglip"],
        "largest_tensor_bytes": tensor,
        "shard_bytes": SHARD,
    }
    print(write_result("assemble", result))


def max_tensor_bytes(folder: Path) -> int:
    from syvla.modeling_syvla.tensor_files import nbytes, read_checkpoint

    return max(nbytes(source) for source in read_checkpoint(folder).values())


if __name__ == "__main__":
    main()

"""Whether 8-bit weights help at inference: `pip install torchao`, then `python -m benchmarks.int8 [--device cuda]`.

Linear layers of the VLM and of the action expert at the paper's size with torchao's weight-only quantization against the
same layers in the dtype of the computation, for one token of a thought, the 51 tokens of a flow step and the prompt: eager,
and through `torch.compile` with constant weights, which is what torchao is made for. On a CPU also against packed weights
(`optimize_for_inference(pack_weights=True)`), which change no result.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.machine_bound import describe_device, device_name, dtype_of, synchronize
from benchmarks.reporting import interleaved_rounds, print_table, write_section
from syvla.modeling_syvla.inference_linear import onednn_is_quicker, use_onednn
from syvla.modeling_syvla.packed_weights import pack_weights, why_not_packed

LAYERS = {"thought token": (1, 2048, 11008), "flow step": (51, 1408, 4096), "prompt": (292, 2048, 11008)}
"""(tokens, input width, output width)."""

FORMS = ("int8", "int8 compiled", "packed")

COPIES = 4  # together larger than the caches, as a model's layers are


def build(sizes: tuple[int, int, int], dtype: torch.dtype, device: str) -> dict[str, nn.ModuleList]:
    """The same layers plain, quantized and, on a CPU, packed."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    _, inner, outer = sizes
    plain = nn.ModuleList(nn.Linear(inner, outer, bias=False) for _ in range(COPIES)).to(device, dtype).eval()
    quantized = copy.deepcopy(plain)
    quantize_(quantized, Int8WeightOnlyConfig())
    models = {"plain": plain, "int8": quantized}
    if why_not_packed(plain) is None:
        models["packed"] = copy.deepcopy(plain)
        pack_weights(models["packed"])
    if dtype == torch.float32 and device == "cpu":
        use_onednn(plain, onednn_is_quicker())
    return models


def measure(
    sizes: tuple[int, int, int], dtype: torch.dtype, device: str, repeats: int, compiled: bool
) -> dict[str, Any]:
    """Medians per layer in milliseconds, the ratio of times, and the relative error of the result."""
    x = torch.randn(1, sizes[0], sizes[1], dtype=dtype, device=device)
    models = build(sizes, dtype, device)
    error = (models["int8"][0](x) - models["plain"][0](x)).norm() / models["plain"][0](x).norm()

    def through(layers: nn.ModuleList) -> Callable[[], Any]:
        return lambda: [layer(x) for layer in layers]

    variants = {name: through(layers) for name, layers in models.items()}
    if compiled:
        run = torch.compile(lambda: [layer(x) for layer in models["int8"]], dynamic=False)
        variants["int8 compiled"] = run
    rounds = interleaved_rounds(variants, repeats, lambda: synchronize(device))
    times = {name: statistics.median(found) / COPIES * 1e3 for name, found in rounds.items()}
    ratios = {f"{name} / plain": seconds / times["plain"] for name, seconds in times.items() if name != "plain"}
    return {"milliseconds": times, "ratios": ratios, "relative_error": float(error)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="dtypes of the computation")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--no-compile", action="store_true", help="eager alone")
    options = parser.parse_args(argv)
    try:
        import torchao
    except ImportError as error:
        raise SystemExit(f"int8: needs torchao ({error}); pip install torchao") from None
    section: dict[str, Any] = {"torchao": torchao.__version__}
    rows = []
    torch.manual_seed(0)
    with torch.no_grad(), torch._inductor.utils.fresh_cache():
        torch._inductor.config.freezing = True
        for dtype in options.dtype:
            for name, sizes in LAYERS.items():
                found = measure(sizes, dtype_of(dtype), options.device, options.repeats, not options.no_compile)
                section.setdefault(dtype, {})[name] = found
                ratios = [found["ratios"].get(f"{form} / plain", "-") for form in FORMS]
                rows.append([dtype, name, found["milliseconds"]["plain"], *ratios, found["relative_error"]])
    print_table(["dtype", "layer", "plain ms", *(f"{form} / plain" for form in FORMS), "relative error of int8"], rows)
    print(write_section("int8", device_name(options.device), section, describe_device(options.device)))


if __name__ == "__main__":
    main()

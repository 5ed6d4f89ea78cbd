"""Measures the choices inside a training step one by one: attention, token padding, memory, gradients, input."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import ViTConfig, vit_config
from model.layers.attention import BackwardByProducts
from model.vit import EncoderBlock
from orchestrator.engine.cpu import keep_freed_memory
from orchestrator.engine.devices import device_name
from orchestrator.engine.settings import PRECISIONS
from orchestrator.engine.step import normalise

EPILOG = """
The choices of a group take turns, --repeats times each. The result is the median, with the smallest and the largest
value. A star marks what this project uses on this device. Times are milliseconds for --batch images:

attention  forward and backward at the model's tokens, heads and head width, on views of one packed tensor as in the
           model. CPU: PyTorch's fused kernel, and its forward pass with a backward pass by products. GPU: each of
           PyTorch's fused kernels, and PyTorch's own choice
padding    one encoder block, forward and backward, with the tokens padded to a multiple of 8, 16 and 64
memory     an elementwise operation on activations as wide as the MLP, with the result in memory that the C library has
           returned to the system, and in memory that it has kept (CPU)
subnormal  a matrix product of gradients of 1e-39, for which a CPU needs microcode, and the same with subnormal numbers
           flushed to zero; on one thread (CPU)
sums       bf16 gradients of four blocks moved into float32 sums: added to zeros that are cleared twice, as DeepSpeed
           does it, and copied (bf16)
clipping   norm, clipping and AdamW over the weights of four blocks: gradients scaled in a pass of their own, and scaled
           by the fused optimizer as it reads them
input      normalisation of uint8 pixels, eager and compiled into one kernel

The last line is JSON: `device`, and `rows` with `group`, `choice`, `used`, `ms`, `ms_min`, `ms_max`.
"""

Run = Callable[[], object]


def attention(config: ViTConfig, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    tokens, heads, head = config.num_tokens, config.heads, config.width // config.heads
    packed = torch.randn(batch, tokens, 3, heads, head, device=device, dtype=dtype).requires_grad_()
    gradient = torch.randn(batch, tokens, heads * head, device=device, dtype=dtype)

    def run(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Run:
        def pass_() -> None:
            q, k, v = packed.permute(2, 0, 3, 1, 4)
            torch.autograd.grad(function(q, k, v).transpose(1, 2).flatten(2), packed, gradient)

        return pass_

    def only(backend: SDPBackend) -> Run:
        inner = run(F.scaled_dot_product_attention)

        def pass_() -> None:
            with sdpa_kernel(backend):
                inner()

        return pass_

    if device.type == "cpu":
        by_products = {"backward by products": run(BackwardByProducts.apply)} if dtype == torch.bfloat16 else {}
        return {"fused": run(F.scaled_dot_product_attention), **by_products}
    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    return {
        "PyTorch's choice": run(F.scaled_dot_product_attention),
        **{backend.name.lower(): only(backend) for backend in backends},
    }


def padding(config: ViTConfig, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    block = EncoderBlock(config).to(device, dtype)
    tokens = config.num_tokens

    def run(length: int) -> Run:
        x = torch.randn(batch, length, config.width, device=device, dtype=dtype).requires_grad_()
        return lambda: block(x, None).sum().backward()

    lengths = {tokens: "as it is", **{-(-tokens // m) * m: f"to a multiple of {m}" for m in (8, 16, 64)}}
    return {f"{name}: {length}": run(length) for length, name in lengths.items()}


def memory(config: ViTConfig, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    """One operation, measured before and after `keep_freed_memory`."""
    if device.type != "cpu":
        return {}
    x = torch.randn(batch, config.num_tokens, config.mlp_dim).to(dtype)
    return {"": lambda: x * 2}


def subnormal(config: ViTConfig, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    """On one thread: the other threads of this process have already computed and would not adopt the setting."""
    if device.type != "cpu":
        return {}
    gradients = torch.full((batch * config.num_tokens, config.width), 1e-39, dtype=dtype)
    weights = torch.randn(config.width, config.mlp_dim, dtype=dtype)

    def run(flush: bool) -> Run:
        def pass_() -> None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            torch.set_flush_denormal(flush)
            gradients @ weights
            torch.set_flush_denormal(False)
            torch.set_num_threads(threads)

        return pass_

    return {"as they are": run(False), "taken for zero": run(True)}


def sums(config: ViTConfig, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    """bf16 gradients of four blocks into float32 sums: the work between the backward passes of two steps."""
    if dtype == torch.float32:
        return {}
    gradients = [
        torch.randn_like(p, dtype=dtype) for _ in range(4) for p in EncoderBlock(config).to(device).parameters()
    ]
    totals = [torch.zeros_like(gradient, dtype=torch.float32) for gradient in gradients]

    def add_to_zeros() -> None:
        for total, gradient in zip(totals, gradients, strict=True):
            total.add_(gradient.float())
        for total in (*totals, *totals):  # twice, as DeepSpeed does
            total.zero_()

    def copy() -> None:
        for total, gradient in zip(totals, gradients, strict=True):
            total.copy_(gradient)

    return {"added to zeros": add_to_zeros, "copied": copy}


def clipping(config: ViTConfig, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    def weights() -> list[Tensor]:
        blocks = [EncoderBlock(config).to(device) for _ in range(4)]
        parameters = [p for block in blocks for p in block.parameters()]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return list(parameters)

    apart, inside = weights(), weights()
    plain, fused = (torch.optim.AdamW(group, lr=1e-5, fused=True) for group in (apart, inside))

    def clip_apart() -> None:
        torch.nn.utils.clip_grad_norm_(apart, 1.0)
        plain.step()

    def clip_inside() -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in inside if p.grad is not None])
        fused.grad_scale = norm.clamp(min=1.0)  # type: ignore[attr-defined]
        fused.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        fused.step()

    return {"in a pass of its own": clip_apart, "by the optimizer": clip_inside}


def pixels(config: ViTConfig, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    size = (batch, 3, config.image_size, config.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
    compiled = torch.compile(normalise)
    return {"eager": lambda: normalise(images, dtype), "compiled": lambda: compiled(images, dtype)}


GROUPS = {
    "attention": attention,
    "padding": padding,
    "memory": memory,
    "subnormal": subnormal,
    "sums": sums,
    "clipping": clipping,
    "input": pixels,
}


def used(group: str, choice: str, precision: str, device: torch.device) -> bool:
    """Whether this project's step makes that choice on this device."""
    if group == "attention" and device.type == "cpu":
        return choice == ("backward by products" if precision == "bf16" else "fused")
    return choice.startswith(
        ("PyTorch's choice", "as it is", "kept", "taken for zero", "copied", "by the optimizer", "eager")
    )


def seconds(run: Run, device: torch.device) -> float:
    if device.type == "cpu":
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000.0


def in_turn(runs: dict[str, Run], repeats: int, device: torch.device) -> dict[str, list[float]]:
    for run in runs.values():
        for _ in range(8):  # compiles, and allocates memory
            run()
    rounds = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(repeats)]
    return {name: [taken[name] for taken in rounds] for name in runs}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="B/16", help="(%(default)s)")
    parser.add_argument("--batch", type=int, help="images (GPU: 64; CPU: 4)")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="(%(default)s)")
    parser.add_argument("--groups", nargs="+", choices=tuple(GROUPS), default=list(GROUPS), help="(all)")
    parser.add_argument("--repeats", type=int, default=15, help="(%(default)s)")
    options = parser.parse_args(arguments)
    try:
        vit_config(options.model)
    except ValueError as error:
        parser.error(f"--model: {error}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table and, last, one JSON line."""
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, dtype = vit_config(options.model), PRECISIONS[options.precision]
    batch = options.batch or (64 if device.type == "cuda" else 4)
    found: dict[tuple[str, str], list[float]] = {}
    if "memory" in options.groups:
        for taken in in_turn(memory(config, batch, dtype, device), options.repeats, device).values():
            found["memory", "returned"] = taken
    if device.type == "cpu":
        keep_freed_memory()
    for group in options.groups:
        for name, taken in in_turn(GROUPS[group](config, batch, dtype, device), options.repeats, device).items():
            found[group, name or "kept"] = taken

    print(f"{device_name(device)}: {config.name}, {options.precision}, {batch} images")
    print(f"{'':47}{'ms':>9}{'least':>9}{'most':>9}")
    rows = []
    for (group, name), taken in found.items():
        ms = [1000 * value for value in taken]
        star = used(group, name, options.precision, device)
        label = f"{group}: {name}{' *' if star else ''}"
        print(f"{label:47}{statistics.median(ms):9.3f}{min(ms):9.3f}{max(ms):9.3f}")
        measured = {"ms": statistics.median(ms), "ms_min": min(ms), "ms_max": max(ms)}
        rows.append({"group": group, "choice": name, "used": star, **{k: round(v, 4) for k, v in measured.items()}})
    fields = {"device": device_name(device), "model": config.name, "precision": options.precision, "batch": batch}
    print(json.dumps({**fields, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

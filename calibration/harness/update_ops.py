"""Memory-bound ops of the weight update and of number formats: points that `memory_ops` lists with its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calibration.harness.points import Bench, Point, Prepared, Suite, torch_dtype, torch_module, worst_error

FAMILY = "memory"
# Above this a check against the plain way would need more memory than the op itself.
CHECK_ELEMENTS = 1 << 24
Build = Callable[[Bench], Prepared]


def memory_point(
    op: str, sizes: dict[str, Any], moved: float, build: Build, pass_: str = "forward", dtype: str = "bf16"
) -> Point:
    """A point of the memory family that moves at least `moved` bytes."""
    return Point(family=FAMILY, op=op, pass_=pass_, dtype=dtype, sizes=sizes, bytes=moved, prepare=build)


def element_points(suite: Suite, device: str) -> list[Point]:
    """Ops whose size is a number of elements: copy, AdamW, gradient norm, cast, clear."""
    if suite == "tiny":
        sizes: tuple[int, ...] = (4096,)
    elif device == "cpu":
        sizes = (1 << 22, 1 << 18, 1 << 14, 1 << 25)
    else:
        sizes = (1 << 28, 1 << 24, 1 << 20) if suite == "quick" else (1 << 28, 1 << 20, 1 << 24, 1 << 30)
    out = [copy_point(n) for n in sizes]
    for n in sizes[:3]:
        out += [adam_point(n), norm_point(n), cast_point(n), clear_point(n)]
    return out


def quantise(bench: Bench, tokens: int, hidden: int) -> Prepared:
    """bf16 to e4m3 with one scale per tensor: largest magnitude, scale, cast."""
    torch = torch_module()
    x, fp8 = bench.randn(tokens, hidden), torch_dtype("fp8")
    top = float(torch.finfo(fp8).max)

    def run() -> Any:
        scale = x.abs().amax().float() / top
        return (x.float() / scale).to(fp8), scale

    def check() -> float:
        out, scale = run()
        # e4m3 keeps three bits of mantissa: half a unit is 1/16; a third of that is typical.
        return worst_error([(out.float() * scale, x)]) / 4

    return Prepared(run=run, check=check)


def accumulate(bench: Bench, tokens: int, hidden: int) -> Prepared:
    """float32 main gradient += bf16 gradient."""
    grad, main = bench.randn(tokens, hidden), bench.randn(tokens, hidden, dtype="fp32", seed=1)

    def check() -> float:
        return worst_error([(main.clone().add_(grad), main + grad.float())])

    return Prepared(run=lambda: main.add_(grad), check=check)


def residual(bench: Bench, tokens: int, hidden: int) -> Prepared:
    """Sum of two bf16 activations into a new one."""
    a, b = bench.randn(tokens, hidden), bench.randn(tokens, hidden, seed=1)
    return Prepared(run=lambda: a + b, check=lambda: worst_error([(a + b, a.float() + b.float())]))


def copy_point(elements: int) -> Point:
    """Copy of bf16 within the device's memory: the rate that everything else is held against."""

    def prepare(bench: Bench) -> Prepared:
        source = bench.randn(elements)
        target = source.clone().zero_()
        return Prepared(
            run=lambda: target.copy_(source), check=lambda: worst_error([(target.copy_(source)[:4096], source[:4096])])
        )

    return memory_point("copy", {"elements": elements}, 4.0 * elements, prepare)


def cast_point(elements: int) -> Point:
    """float32 master weights to 16 bit weights."""

    def prepare(bench: Bench) -> Prepared:
        source = bench.randn(elements, dtype="fp32")
        target = source.to(torch_dtype("bf16"))
        return Prepared(run=lambda: target.copy_(source), check=lambda: worst_error([(target, source)]))

    return memory_point("cast_16", {"elements": elements}, 6.0 * elements, prepare, pass_="update")


def clear_point(elements: int) -> Point:
    """Setting float32 gradients to zero."""

    def prepare(bench: Bench) -> Prepared:
        target = bench.randn(elements, dtype="fp32")
        return Prepared(run=target.zero_, check=lambda: float(target.zero_().abs().max()))

    return memory_point("clear", {"elements": elements}, 4.0 * elements, prepare, pass_="update", dtype="fp32")


def norm_point(elements: int) -> Point:
    """Norm of float32 gradients, and their scaling by a factor that stays on the device (clipping)."""

    def prepare(bench: Bench) -> Prepared:
        torch = torch_module()
        grad = bench.randn(elements, dtype="fp32")

        def run() -> Any:
            return grad.mul_(torch.clamp(1e9 / grad.norm(), max=1.0))  # so large a limit leaves the data alone

        def check() -> float:
            head = grad[:4096]
            return worst_error([(head.norm(), head.double().square().sum().sqrt())])

        return Prepared(run=run, check=check)

    return memory_point("grad_norm_clip", {"elements": elements}, 12.0 * elements, prepare, "update", "fp32")


def adam_point(elements: int) -> Point:
    """Fused AdamW on float32 parameters, gradients and states: reads 16, writes 12 bytes per element."""

    def prepare(bench: Bench) -> Prepared:
        torch = torch_module()

        def optimizer(fused: bool) -> Any:
            parameter = bench.randn(elements, dtype="fp32").requires_grad_(True)
            parameter.grad = bench.randn(elements, dtype="fp32", seed=1)
            return parameter, torch.optim.AdamW([parameter], lr=1e-3, fused=fused, foreach=False)

        _, adam = optimizer(True)

        def check() -> float:
            # Two steps from the same start; only small cases, the plain one needs many temporaries.
            if elements > CHECK_ELEMENTS:
                return 0.0
            pairs = []
            for fused in (True, False):
                moved, step = optimizer(fused)
                start = moved.detach().clone()
                step.step()
                step.step()
                pairs.append(moved.detach() - start)
            return worst_error([(pairs[0], pairs[1])])

        return Prepared(run=adam.step, check=check)

    return memory_point("fused_adam", {"elements": elements}, 28.0 * elements, prepare, "update", "fp32")

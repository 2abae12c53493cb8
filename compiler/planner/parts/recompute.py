"""What backward finds kept of one part's forward, and what it makes again.

`norms` and `swiglu` drop the results of element-wise ops, which are made again from what those ops save. The other
choices drop everything that is made between two places of the graph and keep what enters there:
    mla_up_proj  from the latents to q, k and v (DeepSeek-V3, section 3.2.3)
    experts      from the dispatched tokens to the experts' results
    full         a layer, whole
FP8 codes of what is made again are made again with it, or by the product that reads it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from dsc.compiler.graph.dim import B, S
from dsc.compiler.graph.op import OpClass
from dsc.compiler.graph.saved import Step, Storage
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.fused.fp8 import Fp8Linears
from dsc.compiler.passes.recompute import METHODS, is_routed, made_in, region
from dsc.compiler.planner.parts.shard import has_row_for_each_expert

SCALED_TILE = 128  # FP8 activations carry one float32 scale for 128 numbers (DeepSeek-V3, section 3.3.2)


@dataclass(frozen=True)
class Kept:
    """What a part holds from forward to backward, and what backward makes anew while it runs the part."""

    storages: tuple[Storage, ...]
    remade: tuple[Storage, ...]
    until: Mapping[Storage, int]
    """What a method makes again goes all at once, after backward of the step at this position, its first."""
    steps: tuple[Step, ...]
    """The part's, as they run then."""


def kept(
    steps: tuple[Step, ...], recompute: Iterable[str], narrow: Container[Storage] = (), layer: str | None = ""
) -> Kept:
    """`narrow`: what is kept in fewer bits than it has. Its codes for a product are made of those.

    `layer`: the path of the layer among the steps, None where none is.
    """
    choices = frozenset(recompute)
    regions = region(steps, choices, layer)
    dropped = {one for index in regions for one in made_in(steps[index])}
    dropped |= {one for step in steps if step.node.op.recompute in choices for one in _results(step)}
    steps = tuple(
        _encoding_again(step)
        if index not in regions and (step.inputs[0] in dropped or step.inputs[0] in narrow)
        else step
        for index, step in enumerate(steps)
    )
    everything = dict.fromkeys(one for step in steps for one in step.saved)
    remade = {one for one in everything if one in dropped}
    wanted = remade | {one for index in regions for one in steps[index].inputs}
    held: dict[Storage, None] = {}
    for index, step in enumerate(steps):
        # A step whose results nobody wants runs again, if at all, for what it keeps to itself.
        again = index in regions and not wanted.isdisjoint(made_in(step) & set(step.outputs))
        needed = step.inputs if again else step.saved
        held.update((one, None) for one in needed if one is not None and one not in dropped)
    until = {
        one: min(found) for found in _methods(steps, choices, layer) for index in found for one in steps[index].saved
    }
    again_made = tuple(one for one in everything if one in dropped)
    return Kept(tuple(held), again_made, {one: until[one] for one in again_made if one in until}, steps)


def _methods(steps: tuple[Step, ...], choices: frozenset[str], layer: str | None) -> list[frozenset[int]]:
    """Positions of what each choice runs again in one go, where it is among the choices."""
    regions = (region(steps, frozenset((choice,)), layer) for choice in choices & METHODS.keys())
    return [found for found in regions if found]


def again(steps: tuple[Step, ...], choice: str, layer: str | None) -> frozenset[int]:
    """Positions of the steps that a choice runs once more in backward."""
    alone = frozenset(index for index, step in enumerate(steps) if step.node.op.recompute == choice)
    return alone | region(steps, frozenset((choice,)), layer)


def made_again(steps: tuple[Step, ...], choice: str, layer: str | None) -> frozenset[Storage]:
    return frozenset(storage for index in again(steps, choice, layer) for storage in made_in(steps[index]))


def attended(steps: tuple[Step, ...]) -> frozenset[Storage]:
    """What attention gives: where activations are in FP8, it is kept once, for attention and the product that reads it.

    Attention's backward asks for more digits than E4M3 has, hence E5M6 (DeepSeek-V3, section 3.3.3).
    """
    found = (step.outputs[0] for step in steps if step.node.op.op_class is OpClass.ATTENTION)
    return frozenset(one for one in found if one is not None and one.type.dtype is DType.BF16 and _tiled(one))


def fp8_storages(steps: tuple[Step, ...]) -> frozenset[Storage]:
    """What is kept in FP8 where activations are: what the experts' products read, and what enters SwiGLU."""
    elementwise = [step for step in steps if step.node.op.recompute == "swiglu"]
    made = {one for step in elementwise for one in made_in(step)}
    found = {one for step in elementwise for one in step.saved if one not in made}
    found |= {one for step in steps if step.node.op.includes_swiglu for one in step.saved}
    found |= {one for step in steps if is_routed(step) for one in step.saved if has_row_for_each_expert(one.type)}
    return frozenset(one for one in (*found, *dispatched(steps)) if one.type.dtype is DType.BF16 and _tiled(one))


def dispatched(steps: tuple[Step, ...]) -> tuple[Storage, ...]:
    """Rows of tokens that the experts of other ranks' tokens receive, where an op's own rows are never written.

    Ops that gather each expert's rows on their own rank read them in place; from another rank they come as a copy,
    [T * K, D], which backward needs for the weights' gradient.
    """
    found = []
    for step in steps:
        rows = [one.type.shape[0] for one in step.saved if has_row_for_each_expert(one.type)]
        source = step.inputs[0]
        if is_routed(step) and rows and source is not None and not has_row_for_each_expert(source.type):
            type = TensorType((rows[0], source.type.shape[-1]), source.type.dtype)
            found.append(Storage(f"{step.path}{step.node.id}.dispatched", type))
    return tuple(found)


def inside(steps: tuple[Step, ...]) -> tuple[Storage, ...]:
    """What an op of all experts writes while it runs and no value of the graph names: results by row, what it keeps."""
    found = []
    for step in steps:
        own = [one for one in step.saved if one not in step.inputs and has_row_for_each_expert(one.type)]
        source = step.inputs[0]
        if is_routed(step) and own and source is not None:
            type = TensorType((own[0].type.shape[0], source.type.shape[-1]), source.type.dtype)
            found += [Storage(f"{step.path}{step.node.id}.rows", type), *own]
    return tuple(found)


def _tiled(storage: Storage) -> bool:
    return storage.type.shape[-1].value({B.name: 1, S.name: SCALED_TILE}) % SCALED_TILE == 0


def _results(step: Step) -> set[Storage]:
    """What an element-wise op makes and does not keep itself."""
    return made_in(step) - set(step.saved)


def _encoding_again(step: Step) -> Step:
    """A product in FP8 of what is made again, or is kept in other bits, keeps no codes of it."""
    op = step.node.op
    if not (isinstance(op, Fp8Linears) and op.saves_codes):
        return step
    assert step.inputs[0] is not None
    return replace(step, node=replace(step.node, op=op.encoding_again()), saved=(step.inputs[0],))

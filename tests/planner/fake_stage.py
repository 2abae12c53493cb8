"""Runs one pipeline stage of an emitted package under fake tensors and prints its peak memory, a JSON object.

    fake_stage.py FOLDER CLASSES ACTIONS TOKENS

FOLDER holds the package, CLASSES names the layers of the stage (MoeLayer,MoeLayer), ACTIONS is what the rank does
(F0 F1 B0 ...), each with its micro-batch, and TOKENS the length of a micro-batch's one sequence.

A process of its own, because autograd over fake tensors may abort. The device is the CPU: over fake CUDA tensors
it surely does. Modules are made in their final type, since Module.to() cannot move fake parameters, and MemTracker
knows modules by their calls, so its memory of those is cleared between micro-batches.
"""

import importlib
import json
import sys
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker


def main(folder: str, classes: str, actions: str, tokens: str) -> None:
    package = Path(folder)
    sys.path.insert(0, str(package.parent))
    model = importlib.import_module(f"{package.name}.model")
    torch.set_default_dtype(torch.bfloat16)
    length = int(tokens)
    with FakeTensorMode():
        layers = torch.nn.ModuleList(getattr(model, name)() for name in classes.split(","))
        tracker = MemTracker()
        tracker.track_external(layers)
        with tracker:
            inputs: dict[str, torch.Tensor] = {}
            outputs: dict[str, tuple[torch.Tensor, ...]] = {}
            for action in actions.split():
                kind, micro_batch = action[0], action[1:]
                if kind == "F":
                    tracker.reset_mod_stats()
                    x = inputs[micro_batch] = torch.empty(1, length, model.HIDDEN_SIZE, requires_grad=True)
                    rope = model.spread_pairs(model.rotary_table(length, x))
                    losses = []
                    for layer in layers:
                        x, *loss = layer(x, rope) if isinstance(layer, model.MoeLayer) else (layer(x, rope),)
                        losses += loss
                    outputs[micro_batch] = (x, *losses)
                    del x, rope, losses, loss
                else:
                    results = outputs.pop(micro_batch)
                    torch.autograd.backward(results, [torch.empty_like(result) for result in results])
                    received = inputs.pop(micro_batch)  # MemTracker's hooks hold on to it: only its memory can go
                    received.grad, received.data = None, torch.empty(0)
                    del received, results
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    print(json.dumps({str(getattr(name, "value", name)): size for name, size in peak.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])

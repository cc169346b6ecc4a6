"""Early exit on the reference model: how sure a token must be, what it saves, and what it costs.

The answers of the packaged probe set are told with exits after the named layers. Blocks are counted
at the positions that tell an answer. One line for each confidence; JSON on request.

    python -m benchmarks.early_exit --layers 3,5 --json exits.json
"""

import argparse
import json
from pathlib import Path

import torch

from brickwork import Configuration, ConfiguredModel, load_model
from brickwork.brick.address import parse_numbers
from brickwork.brick.configuration import BrickUse
from brickwork.build.layers import exit_brick
from brickwork.measure.instances import encode_instances, read_instances, sample_instances
from brickwork.model.train import Encoded, groups_by_length
from brickwork.reference.paths import model_folder, resolve_data


def measured(
    model: ConfiguredModel, sequences: list[Encoded], row: Configuration
) -> dict[str, float]:
    """Mean loss in nats per token of the answers, and mean blocks per token."""
    nats, blocks, tokens = 0.0, 0, 0
    for group in groups_by_length([len(s.ids) for s in sequences], 4096):
        batch = [sequences[i] for i in group]
        rows = [s.ids for s in batch]
        told = [len(s.ids) - s.response_start + 1 for s in batch]
        plan = model.plan([row] * len(batch))
        with torch.inference_mode(), model.serving(rows, plan, told=told) as layout:
            logits = model.loaded.model(
                **layout.inputs, attention_mask=layout.mask_or_none, position_ids=layout.positions
            ).logits
            for number, (ids, n) in enumerate(zip(rows, told, strict=True)):
                told_by = logits[number, -n:-1].float()
                target = torch.tensor(ids[-(n - 1) :])
                nats += torch.nn.functional.cross_entropy(told_by, target, reduction="sum").item()
                every = [len(model.loaded.base.of_kind("block"))] * n
                used = layout.exits.blocks(number, n) if layout.exits else every
                blocks, tokens = blocks + sum(used[:-1]), tokens + n - 1
    return {"loss": nats / tokens, "blocks": blocks / tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", default="3,5", help="blocks after which a token may leave")
    parser.add_argument("--confidences", default="1,0.95,0.9,0.8,0.6,0.4,0.2")
    parser.add_argument("--instances", type=int, default=20, help="of each functionality")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(str(model_folder()), dtype="float32")
    instances = sample_instances(
        read_instances(Path(resolve_data("reference"))), arguments.instances, seed=0
    )
    found = encode_instances(loaded, instances, longest=512).sequences
    sequences = [sequence for sequence in found if sequence is not None]
    model = ConfiguredModel(loaded)
    rows = [{"confidence": None, **measured(model, sequences, Configuration())}]
    layers = parse_numbers(arguments.layers)
    for text in arguments.confidences.split(","):
        brick = exit_brick(loaded, layers, float(text), name="out")
        model.add(brick)
        used = Configuration(bricks=(BrickUse(name="out"),))
        rows.append({"confidence": float(text), **measured(model, sequences, used)})
    print(f"exits after layers {arguments.layers}, {len(sequences)} instances")
    print("confidence   loss   blocks per token")
    for row in rows:
        name = "no exits" if row["confidence"] is None else f"{row['confidence']:g}"
        print(f"{name:>10} {row['loss']:6.3f} {row['blocks']:9.2f}")
    if arguments.json:
        document = {"layers": arguments.layers, "instances": len(sequences), "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()

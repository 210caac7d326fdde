"""One rank of the parity tests: ``parity_worker.py FOLDER RANK WORLD_SIZE JOB`` runs a job and saves what it saw."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
import cases


def parity(world_size: int) -> dict[str, object]:
    """Run every case of this world size."""
    results = {}
    for case in cases.TWO_RANKS if world_size == 2 else cases.FOUR_RANKS:
        program = case.build()
        initial = {name: cases.whole(value).clone() for name, value in program.tensors().items() if "model." in name}
        results[case.name] = {"initial": initial, "records": cases.make_steps(program, range(cases.STEPS))}
    return results


def resume(world_size: int) -> dict[str, object]:
    """Make steps without stopping, and again with a new program loaded in the middle; small buckets, fp32."""
    results = {}
    for use in ((), ("replicate",)):
        options = {} if use else {"ddp": {"bucket_mb": 0.02}}
        case = cases.Case(
            "resume", world_size, {"dp_replicate": world_size}, use, dtype="fp32", options=options, clip=0.1
        )
        straight = [record["loss"] for record in cases.make_steps(case.build(), range(6))]
        first = case.build()
        stopped = [record["loss"] for record in cases.make_steps(first, range(2))]
        saved = {name: cases.whole(tensor).clone() for name, tensor in first.tensors().items()}
        second = case.build(seed=99)
        for name, tensor in second.tensors().items():
            (tensor.to_local() if hasattr(tensor, "to_local") else tensor).copy_(saved[name])
        second.load_tensors(second.tensors())
        second.load_state(first.state())
        stopped += [record["loss"] for record in cases.make_steps(second, range(2, 6))]
        results[" ".join(use) or "ddp"] = {"straight": straight, "stopped": stopped}
    return results


def main() -> None:
    folder, rank, world_size, job = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo",
            init_method=(folder / "rendezvous").as_uri(),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=40),
        )
    torch.save({"parity": parity, "resume": resume}[job](world_size), folder / f"{rank}.pt")
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

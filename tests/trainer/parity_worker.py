"""One rank of the parity tests: ``parity_worker.py FOLDER RANK WORLD_SIZE JOB`` runs a job and saves what it saw."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
import cases

from iostack.errors import ResolveError


def parity(world_size: int) -> dict[str, object]:
    """Run every case of this world size."""
    results: dict[str, object] = {"refusal": refusal(world_size)}
    for case in cases.TWO_RANKS if world_size == 2 else cases.FOUR_RANKS:
        program = case.build()
        initial = {name: cases.whole(value).clone() for name, value in program.tensors().items() if "model." in name}
        records = cases.make_steps(program, range(cases.STEPS))
        program.evaluate(cases.batch_of_step(0, data_rank=program.data_rank, data_ranks=program.data_ranks))
        sample = cases.generated_by(program) if dist.get_rank() == 0 else None
        final = {name: cases.whole(tensor).clone() for name, tensor in program.tensors().items()}
        results[case.name] = {"initial": initial, "records": records, "final": final, "sample": sample}
    return results


def refusal(world_size: int) -> str:
    """Return the error of a request that is illegal on all ranks."""
    try:
        cases.Case("refused", world_size, {"pp": world_size}, ("ddp",), microbatch_size=1).build()
    except ResolveError as error:
        return str(error)
    return ""


def resume(world_size: int) -> dict[str, object]:
    """Make steps without stopping, and again with a new program loaded in the middle; small buckets, fp32."""
    results = {}
    unsettled = {"bucket_mb": 0.02, "unused_parameters": True}
    for use, ddp in (((), {"bucket_mb": 0.02}), ((), unsettled), (("replicate",), {})):
        options = {"ddp": ddp} if ddp else {}
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
        results[f"{use} {ddp}"] = {"straight": straight, "stopped": stopped}
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

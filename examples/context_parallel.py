"""Several processes paint one picture together: `torchrun --nproc-per-node 2 examples/context_parallel.py`."""

from pathlib import Path

import torch
import torch.distributed as dist

import subjectgen
from subjectgen.models.dit.parallel import enable_context_parallel

cuda = torch.cuda.is_available()
dist.init_process_group("nccl" if cuda else "gloo")
device = f"cuda:{dist.get_node_local_rank()}" if cuda else "cpu"
if cuda:
    torch.cuda.set_device(device)

pipe = subjectgen.load("mini", device=device)
enable_context_parallel(pipe.transformer, dist.get_world_size())
reference = sorted((Path(__file__).parent / "references").glob("*.png"))[0]
image = pipe(
    "image 1 upside down on the left on a blue striped background",
    reference,
    generator=torch.Generator().manual_seed(0),  # the same in every process, as everything else
).images[0]

if dist.get_rank() == 0:
    out = Path("out", "context_parallel.png")
    out.parent.mkdir(exist_ok=True)
    image.save(out)
    print(out)
dist.destroy_process_group()

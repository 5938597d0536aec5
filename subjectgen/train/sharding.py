"""FSDP: every process keeps a part of each weight, as `accelerate launch --config_file examples/fsdp.yaml` asks for."""

from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import fully_shard


def shard_if_asked(module: nn.Module) -> None:
    """Shard the module in place, block by block, if it was launched for that. Raises ValueError for FSDP 1.

    FSDP 2 shards parameter by parameter, so trained float32 weights may stand beside frozen bfloat16 ones in a block.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version={plugin.fsdp_version}: expected 2. Launch with --config_file examples/fsdp.yaml"
        )
    options = {"reshard_after_forward": plugin.reshard_after_forward, "offload_policy": plugin.cpu_offload}
    names = set(plugin.transformer_cls_names_to_wrap or ())
    blocks = [each for each in module.modules() if type(each).__name__ in names]
    for part in (*blocks, module):
        fully_shard(part, **options)  # type: ignore[arg-type]

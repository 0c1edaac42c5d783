"""A model in shards, a part on each process (FSDP2), and the way from a whole model to shards and back.

The whole model lies on rank 0; what trains is a twin of it, made without weights on every rank, sharded, and then
filled. After training, and for checkpoints, the whole model gets the twin's weights. Files are therefore those of a
model that was never sharded, and any number of processes can go on with them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sprachbund.modeling.footprint import layers_of


def shard_dimension(shape: torch.Size, num_ranks: int) -> int:
    """Return the dimension along which a parameter is cut.

    The first, as FSDP2 does, except for experts, (E, out, in): where the ranks do not share E evenly, some would hold
    more than others and, with fewer experts than ranks, some nothing at all; then it is an inner dimension, if one can
    be shared evenly (FSDP2 cuts inner ones in no other way).
    """
    if len(shape) < 3:
        return 0
    return next((dim for dim, size in enumerate(shape) if size % num_ranks == 0), 0)


def shard(model: Any) -> None:
    """Cut a causal model, dense or mixture, into shards in place: by decoder layer, and what is in none of them."""
    mesh = init_device_mesh(_device().type, (dist.get_world_size(),))

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(shard_dimension(parameter.shape, mesh.size()))

    for part in (*layers_of(model), model):
        fully_shard(part, mesh=mesh, shard_placement_fn=placement)


def into_shards(model: Any) -> Any:
    """Return a model without weights (on the meta device) in shards on the device, to be filled; all ranks together."""
    shard(model)
    return model.to_empty(device=_device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def fill_from_leader(model: Any, whole: Any = None) -> None:
    """Give a model on every rank, sharded or not, the weights and buffers of rank 0: of `whole`, or of `model` there.

    One tensor after the other, so that no rank holds a second whole model.
    """
    leads = dist.get_rank() == 0
    given = dict(_tensors(model if whole is None else whole)) if leads else {}
    for name, tensor in _tensors(model):
        full = given[name].detach().to(_device()) if leads else torch.empty(tensor.shape, dtype=tensor.dtype)
        full = full.to(_device()).contiguous()
        dist.broadcast(full, src=0)
        if isinstance(tensor, DTensor):
            ours = distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)
            tensor.to_local().copy_(ours.to_local())
        elif not (leads and whole is None):
            tensor.copy_(full)


def _tensors(model: Any) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@torch.no_grad()
def gather_to_leader(twin: Any, whole: Any) -> None:
    """Give `whole`, which rank 0 has and the others do not (None), the weights of its sharded twin."""
    given = {} if whole is None else dict(whole.named_parameters())
    for name, parameter in twin.named_parameters():
        full = parameter.full_tensor()
        if whole is not None:
            given[name].copy_(full)


def gathered_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state as that of a model which was never sharded, on the CPU of rank 0; empty elsewhere."""
    state = optimizer.state_dict()
    leads = dist.get_rank() == 0
    whole: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        full = {name: v.full_tensor() if isinstance(v, DTensor) else v for name, v in values.items()}
        whole[number] = {name: v.cpu() if isinstance(v, Tensor) else v for name, v in full.items()} if leads else {}
    return {**state, "state": whole} if leads else {}


def sharded_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer for its sharded parameters, cut from that of a whole model."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    cut: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        like = parameters[number]
        cut[number] = {name: _like(value, like) for name, value in values.items()}
    return {**state, "state": cut}


def _like(value: Any, parameter: Tensor) -> Any:
    """Cut what belongs to every number of a parameter as the parameter is cut."""
    if not (isinstance(value, Tensor) and value.shape == parameter.shape and isinstance(parameter, DTensor)):
        return value
    return distribute_tensor(value.to(_device()), parameter.device_mesh, parameter.placements, src_data_rank=None)


def clip_sharded_gradients(model: nn.Module, most: float) -> Tensor:
    """Clip the gradients of a sharded model to a norm; returns the norm before."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    clip_grads_with_norm_(parameters, most, norm)
    return norm

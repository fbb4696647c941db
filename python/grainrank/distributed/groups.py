"""The process group of the option `group`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def resolve_group(group: Any) -> ProcessGroup | None:
    """A `ProcessGroup`, or that of a `DeviceMesh` with one dimension; None: this process alone.

    Raises:
        TypeError: neither of these.
        ValueError: a mesh of several dimensions, or a group without this process.
    """
    if group is None:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "group needs torch.distributed: call torch.distributed.init_process_group() first, or "
            "pass torch.distributed.group.WORLD, which is None without it"
        )
    from torch.distributed.device_mesh import DeviceMesh

    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            names = group.mesh_dim_names
            shown = "its dimension" if names is None else f'mesh["{names[0]}"]'
            raise ValueError(
                f"group must be a DeviceMesh with one dimension, over which the batch is spread, "
                f"got {group.ndim}; pass {shown}, or a ProcessGroup of all these ranks"
            )
        group = group.get_group()
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group must contain this process, got a group that does not")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"group must be a torch.distributed.ProcessGroup, a DeviceMesh or None, "
            f"got {type(group).__name__}; pass torch.distributed.group.WORLD for all ranks"
        )
    return group if dist.get_world_size(group) > 1 else None

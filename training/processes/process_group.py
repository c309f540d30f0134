"""The end of a run of several processes."""

from __future__ import annotations


def leave_process_group() -> None:
    """Waits for the other processes of the run, and ends the connections to them. Does nothing in a run of one process.

    A process that exits within its group leaves threads of it behind, which now and then abort it in native code; the
    launcher then reports a finished run as a failed one. So every training command calls this when all is written.
    """
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

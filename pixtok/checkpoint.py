"""Checkpoints: Orbax, asynchronous, the weights and the rest as separate items."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from pixtok.errors import InputError
from pixtok.step import State


class Checkpoints:
    """The checkpoints of one run.  A context manager; leaving it waits for saves under way."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The latest step that is wholly saved."""
        self._manager.wait_until_finished()
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Start saving; training may go on at once."""
        rest = {"step": state.step, "optimizer": state.optimizer}
        self._manager.save(
            step,
            args=ocp.args.Composite(params=ocp.args.StandardSave(state.params), rest=ocp.args.StandardSave(rest)),
        )

    def restore(self, step: int, abstract: State) -> State:
        """The state, on the shardings of `abstract`."""
        rest = {"step": abstract.step, "optimizer": abstract.optimizer}
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params), rest=ocp.args.StandardRestore(rest)
            ),
        )
        return State(restored["rest"]["step"], restored["params"], restored["rest"]["optimizer"])

    def restore_params(self, step: int | None, abstract: Any) -> tuple[int, Any]:
        """(step, weights alone); None: the latest.  Raises InputError when there is no such step."""
        steps = sorted(self._manager.all_steps())
        if step is None and steps:
            step = steps[-1]
        if step is None or step not in steps:
            has = f"steps {', '.join(map(str, steps))}" if steps else "no checkpoint yet"
            wanted = "a checkpoint" if step is None else f"step {step}"
            raise InputError(f"{wanted} was wanted of {self.folder}, which has {has}")
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract)))
        except Exception as error:  # Orbax raises what json, zarr and the file system raise
            reason = "".join(str(error).splitlines()[:1])
            raise InputError(f"{self.folder / str(step)} cannot be read ({type(error).__name__}: {reason})") from error
        return step, restored["params"]

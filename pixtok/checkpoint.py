"""Checkpoints: Orbax, asynchronous; the weights, the rest and a manifest as separate items."""

from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from pixtok import cluster, config
from pixtok.errors import InputError
from pixtok.files import is_local
from pixtok.step import State


class Checkpoints:
    """The checkpoints of one run, here or in a bucket.  A context manager; leaving it waits for saves under way."""

    def __init__(
        self, folder: epath.PathLike, keep: config.Checkpoint | None = None, save_seconds: float = 3600
    ) -> None:
        """`keep` None: to read alone.  On several processes all must do the same, in the same order."""
        self.folder = epath.Path(folder)
        if keep is None:
            options = ocp.CheckpointManagerOptions(create=False)
        else:
            policies: list[preserve.PreservationPolicy] = [preserve.LatestN(keep.keep)]
            if keep.keep_every is not None:
                policies.append(preserve.EveryNSteps(keep.keep_every))
            options = ocp.CheckpointManagerOptions(
                preservation_policy=preserve.AnyPreservationPolicy(policies),
                create=True,
                # What a kill left of a save is of no use.
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(timeout_secs=int(save_seconds)),
            )
        path = self.folder.absolute() if is_local(self.folder) else self.folder
        self._manager = ocp.CheckpointManager(path, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The latest step that is wholly saved.  Raises what made a save fail."""
        self._manager.wait_until_finished()
        return self._manager.latest_step()

    def check(self) -> None:
        """Raises what made a save under way fail."""
        self._manager.check_for_errors()

    def save(self, step: int, state: State, manifest: dict[str, Any]) -> None:
        """Start saving; training may go on at once.  `manifest`: all that must agree before it is loaded."""
        rest = {"step": state.step, "optimizer": state.optimizer}
        self._save(step, manifest, params=state.params, rest=rest)

    def save_params(self, step: int, params: Any, manifest: dict[str, Any]) -> None:
        """Start saving weights alone: enough for everything but to resume."""
        self._save(step, manifest, params=params)

    def _save(self, step: int, manifest: dict[str, Any], **trees: Any) -> None:
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._manager.save(step, args=ocp.args.Composite(manifest=ocp.args.JsonSave(manifest), **items))

    def manifest(self, step: int) -> dict[str, Any]:
        """What was saved beside a state.  Raises InputError when there is none."""
        return self._read(step, manifest=ocp.args.JsonRestore())["manifest"]

    def restore(self, step: int, abstract: State) -> State:
        """The state, on the shardings of `abstract`, whatever mesh it was saved on.  Raises InputError."""
        rest = {"step": abstract.step, "optimizer": abstract.optimizer}
        restored = self._read(
            step, params=ocp.args.StandardRestore(abstract.params), rest=ocp.args.StandardRestore(rest)
        )
        return State(restored["rest"]["step"], restored["params"], restored["rest"]["optimizer"])

    def choose(self, step: int | None) -> int:
        """This step, None: the latest.  Raises InputError when there is no such checkpoint."""
        steps = sorted(self._manager.all_steps())
        if step is None and steps:
            step = steps[-1]
        if step is None or step not in steps:
            has = f"steps {', '.join(map(str, steps))}" if steps else "no checkpoint yet"
            wanted = "a checkpoint" if step is None else f"step {step}"
            raise InputError(f"{wanted} was wanted of {self.folder}, which has {has}")
        return step

    def restore_params(self, step: int, abstract: Any) -> Any:
        """The weights alone.  Raises InputError."""
        return self._read(step, params=ocp.args.StandardRestore(abstract))["params"]

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises what json, zarr and the file system raise
            if cluster.breaks_off(error):
                raise
            reason = "".join(str(error).splitlines()[:1])
            raise InputError(f"{self.folder / str(step)} cannot be read ({type(error).__name__}: {reason})") from error

import dataclasses
import json
import math
import sys

import jax
import numpy as np
import pytest
from models import batch, compiled, image, stack

from helpers import save_image
from pixtok import cli, convert, weights
from pixtok.config import PRESETS, Data, Experiment, Stream, Train
from pixtok.data.build import Settings, build
from pixtok.data.pipeline import Loader
from pixtok.errors import InputError
from pixtok.peer import peer
from pixtok.run import Run
from pixtok.sharding import make_mesh
from pixtok.step import Program

STREAM = Stream(width=32, layers=2, heads=4, kv_heads=2)
SILENT = dataclasses.replace(
    PRESETS["upw-image"],
    encoder=STREAM,
    trunk=dataclasses.replace(STREAM, layers=3),
    decoder=dataclasses.replace(STREAM, layers=0),
    fold_factor=64,
    window=4,
)
MIXED = dataclasses.replace(SILENT, vocab_size=262)
FLAGS = "--heads 4 --kv_heads 2 --fold_factor 64 --image_size 14 --window 4".split()
EXPERIMENT = """
from pixtok.config import Data, Experiment, Model, Stream, Train


def config():
    train = Train(20, 8, 1e-2, warmup_steps=2, dtype="float32", remat="none", log_every=1, eval_batches=100)
    return Experiment("more", {model!r}, Data({path!r}, image_size=14, slots=40, windows=20), train)
"""


def shapes(model) -> dict[str, tuple[int, ...]]:
    """Of a checkpoint of UPW's code."""
    V, C, E = model.vocab_size, (256 // model.fold_factor) ** 3, model.trunk.width
    H, K = model.trunk.heads, model.trunk.kv_heads
    D = E // H
    out = {"tok_embeddings.weight": (V, E), "norm.weight": (E,), "output.weight": (V + C, E)}
    out |= {"imgblk.pix_emb.weight": (C + 1, E), "imgblk.norm.weight": (E,)}
    for prefix, count in (("", model.trunk.layers), ("imgblk.", model.encoder.layers)):
        for layer in (f"{prefix}layers.{n}." for n in range(count)):
            out |= {f"{layer}{name}_norm.weight": (E,) for name in ("attention", "ffn")}
            out |= {
                f"{layer}attention.w{name}.weight": (heads * D, E) for name, heads in (("q", H), ("k", K), ("v", K))
            }
            out |= {f"{layer}attention.wo.weight": (E, H * D), f"{layer}feed_forward.w2.weight": (E, 3 * E)}
            out |= {f"{layer}feed_forward.w{n}.weight": (3 * E, E) for n in (1, 3)}
    return out


def random_state(model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def one(shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.normal(size=shape).astype(np.float32)
        return 1 + noise / 4 if len(shape) == 1 else noise / math.sqrt(shape[1])

    return {name: one(shape) for name, shape in shapes(model).items()}


@pytest.fixture(scope="session")
def torch():
    found = pytest.importorskip("torch", reason="needs PyTorch, which `make test-cluster` installs")
    found.set_num_threads(1)
    return found


def save(torch, path, model, prefix="", dtype=None) -> dict:
    """A checkpoint of random weights → its state."""
    tensors = {name: torch.from_numpy(value).to(dtype) for name, value in random_state(model).items()}
    torch.save({"model": {prefix + name: tensor for name, tensor in tensors.items()}, "step": 7}, path)
    return tensors


@pytest.fixture(scope="session")
def silent(torch, tmp_path_factory):
    return both(torch, tmp_path_factory.mktemp("silent"), SILENT, "none", "module.")


@pytest.fixture(scope="session")
def mixed(torch, tmp_path_factory):
    return both(torch, tmp_path_factory.mktemp("mixed"), MIXED, "bytes")


def both(torch, folder, model, vocabulary, prefix=""):
    """→ (the peer with the weights of a checkpoint, the run that was made of it)."""
    state = save(torch, folder / "upw.pth", model, prefix)
    cli.run(["convert", "upw", str(folder / "upw.pth"), str(folder / "run"), *FLAGS, "--vocabulary", vocabulary])
    module = peer(model, slots=120, windows=64)
    module.load_state_dict(state)
    return module, Run(folder / "run")


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """A run of converted weights, made without PyTorch."""
    (tmp_path / "upw.pth").touch()
    monkeypatch.setattr(convert, "read", lambda _: random_state(SILENT))
    cli.run(["convert", "upw", str(tmp_path / "upw.pth"), str(tmp_path / "run"), *FLAGS])
    return tmp_path / "run"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Images of several shapes, without text, as a data set."""
    root = tmp_path_factory.mktemp("pictures")
    for number, (height, width) in enumerate([(14, 14), (9, 14), (14, 6), (3, 5)] * 5):
        save_image(root / "files" / f"{number:02d}.png", height, width, seed=number)
    build(str(root / "files"), root / "data", Settings(validation=0.3, vocabulary="none"))
    return root / "data"


def logits(run: Run, rows) -> np.ndarray:
    _, _, params = weights.load(run, None)
    return np.asarray(compiled(run.experiment.model, "logits")({"params": params}, rows))


def assert_alike(torch, pair, rows):
    """Logits of both, wherever something is predicted."""
    module, run = pair
    with torch.no_grad():
        wanted = module.logits(module.batch(rows)).numpy()
    got, held = logits(run, rows), rows.target_BS >= 0
    assert held.any()
    assert np.std(wanted[held], axis=0).min() > 0.1, "logits that do not differ show nothing"
    np.testing.assert_allclose(got[held], wanted[held], atol=1e-4, rtol=0)


def test_logits_of_images_of_all_shapes(torch, silent):
    """Square, landscape, portrait, smaller than a window; rows end in padding and absent windows."""
    sizes = (12, 12), (5, 14), (13, 6), (2, 3), (1, 1), (16, 16)
    assert_alike(torch, silent, stack([batch(("", image(*size)), config=SILENT, slots=30) for size in sizes]))


def test_logits_of_words_and_images_and_of_several_documents_in_a_row(torch, mixed):
    one = batch(("a boat ", image(9, 14), " and ", image(14, 5), "."), config=MIXED, slots=60, windows=20)
    two = batch((image(4, 9), "x"), ("words alone",), ("y", image(6, 6)), config=MIXED, slots=60, windows=20)
    module, _ = mixed
    assert module.batch(one).sees_B1SS is None
    assert_alike(torch, mixed, stack([one, two]))
    assert_alike(torch, mixed, stack([one, one]))


def test_the_peer_counts_pixels_of_an_image_over_its_windows(torch, silent):
    module, _ = silent
    of = module.batch(batch(("", image(3, 6)), ("", image(4, 5)), config=SILENT))
    counts = (of.last_N + 1).tolist()
    assert counts == [12, 6, 16, 4]
    assert [of.position_NW[n, :count].tolist() for n, count in enumerate(counts)] == [
        list(range(12)), list(range(12, 18)), list(range(16)), list(range(16, 20))
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), [("silent", "pictures"), ("mixed", "dataset")])
def test_eval_gives_the_loss_of_the_peer(torch, name, data, request, capsys):
    (module, run), path = request.getfixturevalue(name), str(request.getfixturevalue(data))
    capsys.readouterr()
    cli.run(["eval", str(run.path), "--data", path])
    got = json.loads(capsys.readouterr().out)
    settings = dataclasses.replace(run.experiment.data, path=path)
    total = count = 0
    with (
        Loader(settings, run.experiment.model, split="validation", batch_size=2, seed=0).epoch() as batches,
        torch.no_grad(),
    ):
        for rows in (item.rows for item in batches):
            targets = (rows.target_BS >= 0).sum()
            total, count = total + float(module(module.batch(rows))) * targets, count + targets
    assert got["words"] + got["first_pixels"] == count > 0
    assert got["loss"] == got["reference"] == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_becomes_float32(torch, dtype, tmp_path):
    state = save(torch, tmp_path / "upw.pth", SILENT, dtype=getattr(torch, dtype))
    read = convert.read(tmp_path / "upw.pth")
    assert {value.dtype for value in read.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(read["norm.weight"], state["norm.weight"].float().numpy())


def test_a_converted_run_has_the_parameters_of_the_model_and_of_the_preset():
    experiment = Experiment("", SILENT, Data(""), Train(1, 1, warmup_steps=0))
    wanted = Program(experiment, make_mesh(experiment.mesh, jax.devices()[:1])).abstract.params
    state = random_state(SILENT)
    made = convert.upw_model(state, heads=4, kv_heads=2, fold_factor=64, window=4)
    params = convert.upw_params(state, made)
    assert made == SILENT
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(map(np.size, state.values()))
    preset = PRESETS["upw-image"]
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes(preset).items()}
    assert convert.upw_model(empty) == preset


@pytest.mark.slow
def test_training_goes_on_from_converted_weights(converted, pictures, tmp_path, capsys):
    file = tmp_path / "more.py"
    file.write_text(EXPERIMENT.format(model=SILENT, path=str(pictures)))
    cli.run(["train", str(file), "--init", str(converted), "--run_dir", str(tmp_path / "more")])
    capsys.readouterr()
    cli.run(["eval", str(converted), "--data", str(pictures)])
    before = json.loads(capsys.readouterr().out)["loss"]
    lines = [json.loads(line) for line in (tmp_path / "more" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["split"] == "validation"
    assert lines[0]["loss"] == pytest.approx(before, abs=1e-4)
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < losses[0] - 0.5
    with pytest.raises(InputError, match=r"--init .* begins with its weights"):
        cli.run(["train", str(file), "--run_dir", str(converted)])


def test_a_converted_run_asks_for_data_of_its_vocabulary(converted, dataset):
    with pytest.raises(InputError, match="was converted and so has no data set of its own: give --data"):
        cli.run(["eval", str(converted)])
    with pytest.raises(InputError, match=r"another vocabulary than .*run was trained with"):
        cli.run(["eval", str(converted), "--data", str(dataset)])


def test_safetensors_hold_all_weights_and_the_experiment(converted, tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors", reason="needs the package safetensors")
    from safetensors.numpy import load_file

    out = tmp_path / "out.safetensors"
    capsys.readouterr()
    cli.run(["convert", "safetensors", str(converted), str(out)])
    _, _, params = weights.load(Run(converted), None)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert capsys.readouterr().out == f"{out}: {sum(leaf.size for _, leaf in leaves):,} parameters of step 0\n"
    read = load_file(out)
    for path, leaf in leaves:
        np.testing.assert_array_equal(read.pop(jax.tree_util.keystr(path, simple=True, separator=".")), leaf)
    assert not read
    with safetensors.safe_open(out, "np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["experiment"]) == json.loads(json.dumps(Run(converted).content["experiment"]))
    assert metadata["step"] == "0"
    with pytest.raises(InputError, match=r"step 3 was wanted of .*, which has steps 0"):
        cli.run(["convert", "safetensors", str(converted), str(out), "--step", "3"])


def without(*names):
    return lambda state: {name: value for name, value in state.items() if name not in names}


def shaped(name, *shape):
    return lambda state: state | {name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (without("norm.weight"), [], "it has no norm.weight"),
        (without("tok_embeddings.weight"), [], "it has no matrix tok_embeddings.weight"),
        (without("layers.1.attention.wq.weight"), [], "it has no layers.1.attention.wq.weight"),
        (without("imgblk.layers.0.ffn_norm.weight", "norm.weight"), [], "ffn_norm.weight and 1 more"),
        (shaped("imgblk.extra", 3), [], "unknown is imgblk.extra"),
        (
            shaped("layers.0.feed_forward.w1.weight", 64, 32),
            [],
            "96 × 32; it is 64 × 32; pixtok's blocks have a hidden",
        ),
        (shaped("output.weight", 64, 32), [], "output.weight must be of shape 70 × 32; it is 64 × 32"),
        (shaped("imgblk.pix_emb.weight", 65, 16), [], "imgblk.pix_emb.weight must be of shape 65 × 32"),
        (shaped("imgblk.pix_emb.weight", 60, 32), [], "L³ + 1 = 65: no fold factor makes that many"),
        (dict, ["--fold_factor", "16"], "has 65 rows, and --fold_factor 16 makes L³ + 1 = 4097: give --fold_factor 64"),
        (dict, ["--fold_factor", "4"], "--fold_factor must be one of 8, 16, 32, 64, 128, 256; got 4"),
        (dict, ["--heads", "5"], "--heads 5 does not divide the width 32"),
        (dict, ["--heads", "16"], "--heads 16 does not divide the width 32 into heads of 4, 8, 12, … features"),
        (dict, ["--kv_heads", "3"], "--kv_heads must divide --heads 4; got 3"),
        (dict, ["--kv_heads", "4"], "wk.weight must be of shape 32 × 32; it is 16 × 32; change --heads or --kv_heads"),
        (dict, ["--image_size", "0"], "--image_size must be at least 1; got 0"),
        (dict, ["--window", "0"], "--window must be at least 1; got 0"),
        (dict, ["--vocabulary", "bytes"], "has 6 word ids, and the vocabulary bytes has 262"),
        (dict, ["--vocabulary", "nowhere.json"], "no vocabulary at nowhere.json"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(change, flags, message, tmp_path, monkeypatch):
    (tmp_path / "upw.pth").touch()
    monkeypatch.setattr(convert, "read", lambda _: change(random_state(SILENT)))
    refused([str(tmp_path / "upw.pth"), str(tmp_path / "run"), *FLAGS, *flags], message, tmp_path)


def refused(args, message, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as error:
        cli.run(["convert", "upw", *args])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('this ran')",)


def test_files_that_are_no_checkpoints_are_refused_and_never_run(torch, tmp_path):
    file, run = tmp_path / "upw.pth", str(tmp_path / "run")
    refused([str(file), run], "no checkpoint at", tmp_path)
    for content in (b"", b"not a checkpoint", b"\x80\x02}q\x00."):
        file.write_bytes(content)
        refused([str(file), run], "upw.pth", tmp_path)
    vector = torch.zeros(3)
    for content, message in (
        ({"model": {"norm.weight": vector}, "args": Evil()}, "holds more than tensors, which could run code"),
        ({"weights": {}}, "holds no `model`"),
        ([vector], "holds no `model`"),
        ({"model": {"norm.weight": [1.0]}}, "norm.weight is not a matrix of weights"),
        ({"model": {"norm.weight": vector.int()}}, "norm.weight is not a matrix of weights"),
        ({"model": {}}, "not a checkpoint of UPW's model: it has no matrix tok_embeddings.weight"),
    ):
        torch.save(content, file)
        refused([str(file), run], message, tmp_path)


def test_nothing_is_overwritten(converted, tmp_path):
    refused([str(tmp_path / "upw.pth"), str(converted), *FLAGS], "is not empty: give a new folder", tmp_path)
    refused([str(tmp_path / "upw.pth"), str(tmp_path / "upw.pth"), *FLAGS], "is not empty", tmp_path)


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "safetensors.numpy", raising=False)
    for package in ("torch", "safetensors"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "upw.pth").touch()
    refused([str(tmp_path / "upw.pth"), str(tmp_path / "run")], "torch: pip install 'pixtok[torch]'", tmp_path)
    with pytest.raises(InputError, match=r"package safetensors: pip install 'pixtok\[safetensors\]'"):
        cli.run(["convert", "safetensors", "nowhere", "x.safetensors"])
    with pytest.raises(InputError, match=r"package torch: pip install 'pixtok\[torch\]'"):
        peer(SILENT, 8, 8)
    with pytest.raises(InputError, match=r"OUT must be a .safetensors; got x.bin"):
        cli.run(["convert", "safetensors", "nowhere", "x.bin"])


def test_the_peer_is_upws_model_alone(torch):
    with pytest.raises(InputError, match=r"model.variant = upw"):
        peer(dataclasses.replace(SILENT, variant="pixtok"), 8, 8)

"""The ledger against the parameter tree, against hand-made sums, and against the compiler's own count."""

import dataclasses

import flax.linen as nn
import jax
import pytest
from models import PATCHES, READING, SMALL, STEM, batch, compiled, image

from pixtok import flops, hlo
from pixtok.config import PRESETS, Data, Experiment, Mesh, Model, Stream, Train
from pixtok.model import heads
from pixtok.model.halo import offsets
from pixtok.model.model import UnifiedModel
from pixtok.sharding import make_mesh
from pixtok.step import Program

MODELS = {
    **{name: PRESETS[name] for name in ("upw-image", "upw-mixed", "tiny", "family-192", "family-768")},
    "colours by channel": dataclasses.replace(SMALL, fold_factor=1),
    "no residual, no summaries": dataclasses.replace(SMALL, residual=False, summaries=False, halo=0),
    "no blocks": dataclasses.replace(SMALL, decoder=dataclasses.replace(SMALL.decoder, layers=0)),
    "words": READING,
    "patches": PATCHES,
    "stem": STEM,
    "stem, words": dataclasses.replace(STEM, objective="words", encoder=dataclasses.replace(STEM.encoder, layers=0)),
    "reference by channel": dataclasses.replace(SMALL, objective="reference", fold_factor=1),
}


def experiment(model: Model, slots: int = 40, windows: int = 16) -> Experiment:
    return Experiment("test", model, Data("none", slots=slots, windows=windows), Train(steps=2, batch_size=6))


def group(path: str) -> str:
    if path in ("encoder/embed/table", "trunk/embed/table"):
        return "embeddings"
    if path.startswith("decoder") and path.endswith(("slot_key", "slot_value", "slots")):
        return "GCA, approximate"
    return {"head": "unified head", "chain": "pixel head"}.get(path.split("/")[0], path.split("/")[0])


@pytest.mark.parametrize("name", MODELS)
def test_groups_are_the_parameter_tree(name):
    model = MODELS[name]
    rows = batch(("", image(2, 2)), config=model)
    params = nn.unbox(jax.eval_shape(UnifiedModel(model).init, jax.random.key(0), rows))["params"]
    counted: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        key = group(jax.tree_util.keystr(path, simple=True, separator="/"))
        counted[key] = counted.get(key, 0) + leaf.size
    ledger = flops.ledger(model, flops.full(experiment(model)))
    assert {key: entry.parameters for key, entry in ledger.items() if entry.parameters} == counted
    assert flops.parameters(model) == sum(counted.values())


def test_upw_is_the_size_that_was_published():
    assert flops.parameters(PRESETS["upw-image"]) == 126_653_184


def test_a_step_is_three_forward_passes_of_the_batch():
    made = experiment(SMALL)
    assert flops.training_step(made) == 3 * 6 * flops.forward(SMALL, flops.full(made))


@pytest.mark.parametrize(("objective", "stem"), [("full", 0), ("words", 0), ("words", 48)])
def test_the_compiler_counts_the_same(monkeypatch, objective, stem):
    # Without loops, whose bodies `cost_analysis` counts once: one block a stack, and likelihoods in one piece.
    monkeypatch.setattr(heads, "chunked", lambda function, chunks, axis, *arrays: function(*arrays))
    pixels, E, S, M, W = 240, 320, 24, 4, 16
    wide = {
        name: Stream(width=width, layers=1, heads=width // 40, kv_heads=width // 80)
        for name, width in (("encoder", pixels), ("trunk", E), ("decoder", pixels))
    }
    if stem:
        wide["encoder"] = dataclasses.replace(wide["encoder"], layers=0)
    model = dataclasses.replace(SMALL, objective=objective, stem=stem, window=4, halo=1, **wide)
    rows = batch(("", image(8, 8)), config=model, slots=S, windows=M)
    variables = nn.unbox(jax.eval_shape(UnifiedModel(model).init, jax.random.key(0), rows))
    compiled.cache_clear()  # of functions that chunk
    program = compiled(model).lower(variables, rows).compile()
    compiled.cache_clear()
    text = program.as_text()
    assert " while(" not in text
    ours = flops.forward(model, flops.full(experiment(model, S, M)))
    # Masked pairs, which are computed too: the other half of causal squares, and of slots.
    masked = (S * S - S * (S + 1) // 2) * E
    if objective == "full":
        masked += M * (W * W - W * (W + 1) // 2) * pixels
        masked += M * (W * W - W * (W + 1) // 2 + (1 + W) * S // 2) * pixels
    assert hlo.Module(text, 1).cost().flops == ours + 4 * masked
    # Norms, softmax and rotations are the rest.
    assert program.cost_analysis()["flops"] == pytest.approx(ours + 4 * masked, rel=0.02)


def test_rows_of_documents_count_what_they_hold():
    # Two documents, one with a window of 3 × 3, one of 3 × 2 to its right, and two below them of 1 × 3 and 1 × 2.
    rows = batch(("ab", image(4, 5)), ("",), config=SMALL)
    found = flops.Counts(*map(int, flops.counts(rows, SMALL)))
    first, second = 1 + 2 + 1 + 4 + 1 + 1, 2
    sizes, slot = (9, 6, 3, 2), (4, 5, 6, 7)
    # Visible around each: nothing; two columns of the first; two rows of both above it, all that there is of the upper
    # right; two rows of the right one above, two of the left, and of its left neighbour two columns.
    around = (0, 6, 2 * 3 + 2 * 2, 2 * 2 + 2 * 2 + 2)
    assert found == flops.Counts(
        slots=first + second,
        windows=4,
        pixels=20,
        slot_pairs=first * (first + 1) // 2 + second * (second + 1) // 2,
        pixel_pairs=sum(n * (n + 1) // 2 for n in sizes),
        halo_pairs=sum((n + 1) * p for n, p in zip(sizes, around, strict=True)),
        far_pairs=sum((n + 1) * s for n, s in zip(sizes, slot, strict=True)),
    )


def test_full_rows_count_as_full():
    model = dataclasses.replace(SMALL, halo=0)
    made = experiment(model, slots=19, windows=16)
    rows = batch(("", image(12, 12)), config=model, slots=20, windows=16)
    counted, full = (n._asdict() for n in (flops.counts(rows, model), flops.full(made)))
    for name in ("windows", "pixels", "pixel_pairs", "halo_pairs"):
        assert counted[name] == full[name]
    assert counted["far_pairs"] == sum(10 * (2 + m) for m in range(16))


def test_attention_grows_as_its_formula_says():
    one = experiment(dataclasses.replace(SMALL, window=4, halo=1), 40, 16)
    more = dataclasses.replace(one, model=dataclasses.replace(one.model, halo=2))

    def exact(made: Experiment) -> int:
        return flops.ledger(made.model, flops.full(made))["GCA, exact"].forward

    gained = exact(more) - exact(one)
    keys = len(offsets(2, 4)) - len(offsets(1, 4))
    assert gained == SMALL.decoder.layers * 4 * 16 * 17 * keys * SMALL.decoder.width


@pytest.mark.slow
def test_what_is_computed_again_is_what_the_compiler_adds():
    model = dataclasses.replace(PRESETS["tiny"], trunk=dataclasses.replace(PRESETS["tiny"].trunk, layers=1))
    done, ours = {}, {}
    for remat in ("none", "attention", "block"):
        made = experiment(model, 20, 16)
        made = dataclasses.replace(made, train=Train(2, 1, warmup_steps=0, dtype="float32", remat=remat))
        program = Program(made, make_mesh(Mesh(), jax.devices()[:1]))
        done[remat] = hlo.Module(program.lower_train_step().compile().as_text(), 1).cost().flops
        ours[remat] = flops.again(made)
    for remat in ("attention", "block"):
        added = (done[remat] - done["none"]) / flops.training_step(made)
        assert added == pytest.approx(ours[remat] - ours["none"], abs=0.02)
        assert added > 0.04

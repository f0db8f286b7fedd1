"""The ledger against the parameter tree, against hand-made sums, and against the compiler's own count."""

import dataclasses

import flax.linen as nn
import jax
import pytest
from models import SMALL, batch, compiled, image

from pixtok import flops, hlo
from pixtok.config import PRESETS, Data, Experiment, Model, Train
from pixtok.model import heads
from pixtok.model.halo import offsets
from pixtok.model.model import UnifiedModel

MODELS = {
    **PRESETS,
    "colours by channel": dataclasses.replace(SMALL, fold_factor=1),
    "no residual, no summaries": dataclasses.replace(SMALL, residual=False, summaries=False, halo=0),
    "no blocks": dataclasses.replace(SMALL, decoder=dataclasses.replace(SMALL.decoder, layers=0)),
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
    ledger = flops.ledger(experiment(model))
    assert {key: entry.parameters for key, entry in ledger.items() if entry.parameters} == counted
    assert flops.parameters(experiment(model)) == sum(counted.values())


def test_upw_is_the_size_that_was_published():
    assert flops.parameters(experiment(PRESETS["upw-image"], 200, 196)) == 126_653_184


def test_a_step_is_three_forward_passes_of_the_batch():
    made = experiment(SMALL)
    assert flops.training_step(made) == 3 * 6 * sum(entry.forward for entry in flops.ledger(made).values())


def test_the_compiler_counts_the_same(monkeypatch):
    # Without loops, whose bodies `cost_analysis` counts once: one block a stack, and likelihoods in one piece.
    monkeypatch.setattr(heads, "chunked", lambda function, chunks, axis, *arrays: function(*arrays))
    wide = {
        name: dataclasses.replace(getattr(SMALL, name), width=width, layers=1, heads=2, kv_heads=1)
        for name, width in (("encoder", 48), ("trunk", 64), ("decoder", 48))
    }
    model = dataclasses.replace(SMALL, window=4, halo=1, **wide)
    S, M, W = 24, 4, 16
    rows = batch(("", image(8, 8)), config=model, slots=S, windows=M)
    variables = nn.unbox(jax.eval_shape(UnifiedModel(model).init, jax.random.key(0), rows))
    compiled.cache_clear()  # of functions that chunk
    program = compiled(model).lower(variables, rows).compile()
    compiled.cache_clear()
    text = program.as_text()
    assert " while(" not in text
    ours = sum(entry.forward for entry in flops.ledger(experiment(model, S, M)).values())
    # Masked pairs, which are computed too: the other half of causal squares, and of slots.
    masked = M * (W * W - W * (W + 1) // 2) * 48 + (S * S - S * (S + 1) // 2) * 64
    masked += M * (W * W - W * (W + 1) // 2 + (1 + W) * S // 2) * 48
    assert hlo.Module(text, 1).cost().flops == ours + 4 * masked
    # Norms, softmax and rotations are some per cent of so narrow a model.
    assert program.cost_analysis()["flops"] == pytest.approx(ours + 4 * masked, rel=0.1)


def test_attention_grows_as_its_formula_says():
    one = experiment(dataclasses.replace(SMALL, window=4, halo=1), 40, 16)
    more = dataclasses.replace(one, model=dataclasses.replace(one.model, halo=2))
    gained = flops.ledger(more)["GCA, exact"].forward - flops.ledger(one)["GCA, exact"].forward
    keys = len(offsets(2, 4)) - len(offsets(1, 4))
    assert gained == SMALL.decoder.layers * 4 * 16 * 17 * keys * SMALL.decoder.width

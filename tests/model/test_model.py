import dataclasses

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp
from models import SMALL, STEM, batch, compiled, image, variables

from pixtok import document, fold, likelihood
from pixtok.config import PRESETS
from pixtok.document import Rows
from pixtok.model.embed import PixelEmbed
from pixtok.model.model import UnifiedModel

UPW = dataclasses.replace(SMALL, variant="upw", objective="reference", trunk=dataclasses.replace(SMALL.trunk, width=16))
BY_CHANNEL = dataclasses.replace(SMALL, fold_factor=2, variant="upw")
VARIANTS = pytest.mark.parametrize(
    "config", [SMALL, UPW, BY_CHANNEL, STEM], ids=["pixtok", "upw", "by-channel", "stem"]
)


@pytest.fixture(autouse=True)
def strict():
    """No silent promotion of dtypes or ranks anywhere in the model."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def sums_of(config, rows):
    nats = compiled(config)(variables(config), rows)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return likelihood.by_slot(nats, rows, config)


@pytest.mark.parametrize(("name", "count"), [("upw-image", 126_653_184), ("upw-mixed", 175_795_968)])
def test_presets_have_upws_number_of_parameters(name, count):
    config = PRESETS[name]
    rows = Rows(*(array[None] for array in document.empty_row(2, 1, config.window)))
    params = jax.eval_shape(UnifiedModel(config).init, jax.random.key(0), rows)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.slow
def test_upw_image_begins_with_the_loss_of_a_uniform_guess():
    config = PRESETS["upw-image"]
    rows = batch((image(32, 20),), config=config, slots=8, windows=4)
    sums = jax.tree.map(np.sum, jax.device_get(sums_of(config, rows)))
    assert likelihood.loss(sums, config) == pytest.approx(np.log(4102), abs=0.1)


@VARIANTS
def test_causality_by_gradient(config):
    """No logit of slot t depends on a later word or on a pixel of a later window, and each depends on its own."""
    rows = batch(("ab", image(4, 7), "c", image(2, 2), "d"), config=config)
    weights = variables(config)
    count = int((rows.segment_BS > 0).sum())
    slot_of_window = rows.window_slot_BM[0][rows.shape_BM2[0, :, 0] > 0]

    def logits(word_shift, pixel_shift):
        """Logits with both embeddings moved by a float, so that inputs have a gradient."""

        def intercept(next_fun, args, kwargs, context):
            out = next_fun(*args, **kwargs)
            if context.method_name == "__call__" and context.module.name == "embed":
                return out + (word_shift[..., None] if out.ndim == 3 else pixel_shift[..., None])
            return out

        with nn.intercept_methods(intercept):
            return UnifiedModel(config).apply(weights, rows, method="logits")[0]

    zeros = jnp.zeros(rows.word_BS.shape), jnp.zeros(rows.pixel_BMW.shape)
    with jax.numpy_rank_promotion("allow"):
        jacobian = jax.jit(jax.jacrev(lambda *shifts: (logits(*shifts) ** 2).sum(-1), argnums=(0, 1)))
        by_word, by_pixel = jacobian(*zeros)
    by_word, by_pixel = np.abs(by_word[:count, 0]), np.abs(by_pixel[:count, 0])
    is_word = ~np.isin(np.arange(count), slot_of_window)
    for t in range(count):
        assert (by_word[t, t + 1 :] == 0).all()
        assert (by_pixel[t, : len(slot_of_window)][slot_of_window > t] == 0).all()
        if is_word[t]:
            assert by_word[t, t] > 0
    for m, slot in enumerate(slot_of_window):
        valid = rows.shape_BM2[0, m].prod()
        assert (by_pixel[slot, m, :valid] > 0).all(), "a summary must see every pixel of its window"
        assert (by_pixel[:, m, valid:] == 0).all(), "padding must be unseen"


@VARIANTS
def test_packing_never_leaks_across_documents(config):
    documents = [("ab", image(4, 7)), (image(5, 5), "text"), ("only words",)]
    got = sums_of(config, batch(*documents, config=config, slots=64))
    start = 0
    for item in documents:
        alone = batch(item, config=config, slots=64)
        count = int((alone.segment_BS > 0).sum())
        for name, expected in sums_of(config, alone)._asdict().items():
            np.testing.assert_allclose(
                getattr(got, name)[0, start : start + count], expected[0, :count], rtol=1e-5, atol=2e-5
            )
        start += count


@VARIANTS
def test_padding_is_never_seen(config):
    """Whatever stands in padded pixels, windows and slots, nothing real moves."""
    rows = batch(("a", image(4, 4)), config=config)
    rng = np.random.default_rng(0)
    padding_BMW = np.arange(9) >= rows.shape_BM2.prod(-1)[..., None]
    dirty = rows._replace(
        pixel_BMW=np.where(padding_BMW, rng.integers(1 << 24, size=padding_BMW.shape, dtype=np.int32), rows.pixel_BMW),
        word_BS=np.where(rows.segment_BS == 0, np.int32(77), rows.word_BS),
    )
    assert padding_BMW[0, 1].any()
    jax.tree.map(np.testing.assert_array_equal, sums_of(config, dirty), sums_of(config, rows))


def test_place_tells_images_of_other_shapes_apart():
    flat = np.full((3, 12, 3), 200, np.uint8)
    logits = compiled(SMALL, "logits")
    wide, square = (logits(variables(SMALL), batch((shape,)))[0, 2] for shape in (flat, flat.reshape(6, 6, 3)))
    assert np.abs(wide - square).max() > 1e-4


@pytest.mark.parametrize(
    ("config", "still"),
    [
        (SMALL, set()),
        (UPW, {"params/encoder/norm/scale"}),
        (dataclasses.replace(SMALL, summaries=False), set()),
        (STEM, set()),
    ],
    ids=["pixtok", "upw", "no-summaries", "stem"],
)
def test_every_parameter_learns(config, still):
    """But for the norm that UPW stores and never applies."""
    rows = batch(("ab", image(8, 7), "c"), ("d", image(3, 3)), config=config)

    def loss(weights):
        return likelihood.loss(
            likelihood.total(likelihood.by_slot(UnifiedModel(config).apply(weights, rows), rows, config)), config
        )

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(variables(config)))
    sizes = {jax.tree_util.keystr(path, simple=True, separator="/"): np.abs(leaf).max() for path, leaf in found}
    assert {name for name, size in sizes.items() if size == 0} == still


def test_objective_reference_has_no_pixel_decoder():
    assert set(variables(UPW)["params"]) == {"encoder", "trunk", "head"}
    # Too many colours for the unified head: the chain tells the first one.
    few = dataclasses.replace(SMALL, fold_factor=4, objective="reference")
    assert fold.by_channel(4)
    assert set(variables(few)["params"]) == {"encoder", "trunk", "head", "decoder", "chain"}
    assert set(variables(few)["params"]["decoder"]) == {"before"}
    assert variables(few)["params"]["head"]["window"].shape[1] == 1
    assert compiled(few)(variables(few), batch((image(4, 4),), config=few)).pixel_BMWC.shape[2:] == (1, 3)


def test_bfloat16_stays_close():
    rows = batch(("ab", image(4, 7)))
    exact = compiled(SMALL)(variables(SMALL), rows)
    with jax.numpy_dtype_promotion("standard"):  # jax.nn.dot_product_attention itself promotes
        low = compiled(SMALL, dtype="bfloat16")(variables(SMALL), rows)
        states = compiled(SMALL, "states", dtype="bfloat16")(variables(SMALL), rows)
    assert {leaf.dtype for leaf in low} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in states} == {jnp.dtype("bfloat16")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01, atol=0.03), low, exact)


def test_gradients_of_a_common_colour_add_up_in_float32():
    """In bfloat16 a sum stops growing at 256 times its terms: a white page would hardly teach its own row."""
    table = PixelEmbed(256, 2, jnp.dtype("bfloat16"))
    pixels = jnp.zeros((1, 16, 256), jnp.int32)
    variables = nn.unbox(table.init(jax.random.key(0), pixels))
    gradient = jax.grad(lambda v: table.apply(v, pixels).astype(jnp.float32).sum())(variables)
    assert gradient["params"]["table"][0].tolist() == [4096, 4096]


@pytest.mark.parametrize("factor", [32, 2])
def test_what_a_stem_reads_begins_linear_in_colour(factor):
    rows = batch((image(3, 3),))
    config = dataclasses.replace(STEM, fold_factor=factor, encoder=dataclasses.replace(SMALL.encoder, width=64))
    made = nn.unbox(UnifiedModel(config).init(jax.random.key(0), rows))
    embed = PixelEmbed(factor, 64, jnp.dtype("float32"), ramps=True)
    colour = np.random.default_rng(0).integers(0, 256 // factor, (200, 3)) * factor
    found = embed.apply({"params": made["params"]["encoder"]["embed"]}, fold.pack(colour.astype(np.uint8))[:, None])
    known = np.concatenate([colour / (256 - factor) * 2 - 1, np.ones((200, 1))], axis=1)
    slopes, _, _, _ = np.linalg.lstsq(known, np.array(found)[:, 0], rcond=None)
    assert np.std(np.array(found)[:, 0] - known @ slopes) == pytest.approx(0.03 if factor == 32 else 0.052, rel=0.1)
    np.testing.assert_allclose(slopes.std(axis=1), 0.5, rtol=0.35)


@pytest.mark.slow
def test_recomputing_blocks_changes_nothing():
    rows = batch(("ab", image(4, 7)))

    def gradient(remat):
        model = UnifiedModel(SMALL, jnp.dtype("float32"), remat)
        return jax.jit(jax.grad(lambda v: jax.tree.reduce(lambda a, b: a + (b**2).sum(), model.apply(v, rows), 0.0)))(
            variables(SMALL)
        )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2), gradient("none"), gradient("block")
    )


@pytest.mark.parametrize(("config", "remat"), [(SMALL, "none"), (SMALL, "attention"), (SMALL, "block"), (STEM, "none")])
def test_where_words_alone_are_predicted_the_trunk_sees_the_same(config, remat):
    rows = batch((image(4, 5), "12"), (image(7, 3),), config=config)
    whole = variables(config, 2.0)
    part = {name: leaf for name, leaf in whole["params"].items() if name in ("encoder", "trunk", "head")}
    part["head"] = {"word": part["head"]["word"]}
    words = UnifiedModel(dataclasses.replace(config, objective="words"), remat=remat)
    loss = lambda params: words.apply({"params": params}, rows).slot_BS.sum()  # noqa: E731
    found, gradient = jax.jit(jax.value_and_grad(loss))(part)

    def same(params: dict) -> jax.Array:
        head = {**params["head"], "window": whole["params"]["head"]["window"]}
        everything = {"params": {**whole["params"], **params, "head": head}}
        y_BSE, _ = UnifiedModel(config).apply(everything, rows, method="states")
        is_word_BS = (rows.target_BS >= 0) & (rows.target_BS < config.vocab_size)
        logits_BSV, target_BS = y_BSE @ head["word"], np.where(is_word_BS, rows.target_BS, 0)
        nats_BS = optax.softmax_cross_entropy_with_integer_labels(logits_BSV, target_BS)
        return jnp.where(is_word_BS, nats_BS, 0).sum()

    expected, wanted = jax.jit(jax.value_and_grad(same))(part)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-5)

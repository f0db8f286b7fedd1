import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from pixtok import document, likelihood, words
from pixtok.config import PRESETS, Model, Stream
from pixtok.document import Document, Rows
from pixtok.model.embed import PixelEmbed
from pixtok.model.model import UnifiedModel

SMALL = Model(
    encoder=Stream(width=16, layers=2, heads=2, kv_heads=1),
    trunk=Stream(width=24, layers=2, heads=2, kv_heads=2),
    fold_factor=64,
    window=3,
)
UPW = dataclasses.replace(SMALL, variant="upw", trunk=dataclasses.replace(SMALL.trunk, width=16))
VARIANTS = pytest.mark.parametrize("config", [SMALL, UPW], ids=["pixtok", "upw"])


@pytest.fixture(autouse=True)
def strict():
    """No silent promotion of dtypes or ranks anywhere in the model."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([height, width, seed]).integers(256, size=(height, width, 3), dtype=np.uint8)


def batch(*documents, config=SMALL, slots=40, windows=16) -> Rows:
    """One row of these documents."""
    pieces = [
        document.tokenize(
            Document("", tuple(parts)),
            words.Bytes(),
            vocab_size=config.vocab_size,
            fold_factor=config.fold_factor,
            side=config.window,
        )
        for parts in documents
    ]
    row = document.pack(pieces, document.empty_row(slots, windows, config.fold_factor, config.window))
    return Rows(*(array[None] for array in row))


@functools.cache
def compiled(config, dtype="float32"):
    """(init, apply) of a model."""
    model = UnifiedModel(config, jnp.dtype(dtype))
    return jax.jit(lambda rows: nn.unbox(model.init(jax.random.key(0), rows))), jax.jit(model.apply)


def setup(config, rows):
    """(apply, variables)."""
    init, apply = compiled(config)
    return apply, init(rows)


@pytest.mark.parametrize(("name", "count"), [("upw-image", 126_653_184), ("upw-mixed", 175_795_968)])
def test_presets_have_upws_number_of_parameters(name, count):
    config = PRESETS[name]
    row = document.empty_row(2, 1, config.fold_factor, config.window)
    rows = Rows(*(array[None] for array in row))
    params = jax.eval_shape(UnifiedModel(config).init, jax.random.key(0), rows)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_upw_image_begins_with_the_loss_of_a_uniform_guess():
    config = PRESETS["upw-image"]
    rows = batch((image(32, 20),), config=config, slots=8, windows=4)
    apply, variables = setup(config, rows)
    logits, _ = apply(variables, rows)
    loss = likelihood.figures(likelihood.reference(logits, jnp.asarray(rows.target_BS), config.vocab_size))["loss"]
    assert loss == pytest.approx(np.log(4102), abs=0.1)


@VARIANTS
def test_causality_by_gradient(config):
    """No logit of slot t depends on a later word or on a pixel of a later window, and each depends on its own."""
    rows = batch(("ab", image(4, 7), "c", image(2, 2), "d"))
    _, variables = setup(config, rows)
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
            return UnifiedModel(config).apply(variables, rows)[0][0]

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
    packed = batch(*documents, slots=64)
    apply, variables = setup(config, packed)
    got = apply(variables, packed)[0][0]
    start = 0
    for item in documents:
        alone = batch(item, slots=64)
        count = int((alone.segment_BS > 0).sum())
        expected = apply(variables, alone)[0][0, :count]
        np.testing.assert_allclose(got[start : start + count], expected, atol=2e-6)
        start += count


@VARIANTS
def test_padding_is_never_seen(config):
    """Whatever stands in padded pixels, windows and slots, no logit of a real slot moves."""
    rows = batch(("a", image(4, 4)))
    apply, variables = setup(config, rows)
    count = int((rows.segment_BS > 0).sum())
    clean = apply(variables, rows)[0][:, :count]
    rng = np.random.default_rng(0)
    padding_BMW = np.arange(9) >= rows.shape_BM2.prod(-1)[..., None]
    dirty = rows._replace(
        pixel_BMW=np.where(padding_BMW, rng.integers(64, size=padding_BMW.shape, dtype=np.int32), rows.pixel_BMW),
        word_BS=np.where(rows.segment_BS == 0, np.int32(77), rows.word_BS),
    )
    assert padding_BMW[0, 1].any()
    np.testing.assert_array_equal(apply(variables, dirty)[0][:, :count], clean)


def test_place_tells_images_of_other_shapes_apart():
    flat = np.full((3, 12, 3), 200, np.uint8)
    apply, variables = setup(SMALL, batch((flat,)))
    wide, square = (apply(variables, batch((shape,)))[0][0, 2] for shape in (flat, flat.reshape(6, 6, 3)))
    assert np.abs(wide - square).max() > 1e-4


def test_every_parameter_learns():
    rows = batch(("ab", image(4, 7), "c"), ("d", image(3, 3)))

    def gradients(config):
        _, variables = setup(config, rows)

        def loss(variables):
            logits, _ = UnifiedModel(config).apply(variables, rows)
            sums = likelihood.reference(logits, jnp.asarray(rows.target_BS), config.vocab_size)
            return sums.nats_word + sums.nats_first_pixel

        found = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(variables))
        return {jax.tree_util.keystr(path, simple=True, separator="/"): np.abs(leaf).max() for path, leaf in found}

    assert min(gradients(SMALL).values()) > 0
    still = {name for name, size in gradients(UPW).items() if size == 0}
    assert still == {"params/encoder/norm/scale"}, "UPW stores this norm and never applies it"


def test_bfloat16_stays_close():
    rows = batch(("ab", image(4, 7)))
    apply, variables = setup(SMALL, rows)
    exact = apply(variables, rows)[0]
    with jax.numpy_dtype_promotion("standard"):  # jax.nn.dot_product_attention itself promotes
        low, states = compiled(SMALL, "bfloat16")[1](variables, rows)
    assert low.dtype == jnp.float32
    assert states["trunk"].dtype == jnp.bfloat16
    np.testing.assert_allclose(low, exact, atol=0.05 * float(np.abs(exact).max()))


def test_gradients_of_a_common_colour_add_up_in_float32():
    """In bfloat16 a sum stops growing at 256 times its terms: a white page would hardly teach its own row."""
    table = PixelEmbed(1, 2, jnp.dtype("bfloat16"))
    pixels = jnp.zeros((1, 16, 256), jnp.int32)
    variables = nn.unbox(table.init(jax.random.key(0), pixels))
    gradient = jax.grad(lambda v: table.apply(v, pixels).astype(jnp.float32).sum())(variables)
    assert gradient["params"]["table"][0].tolist() == [4096, 4096]


def test_recomputing_blocks_changes_nothing():
    rows = batch(("ab", image(4, 7)))
    _, variables = setup(SMALL, rows)

    def gradient(remat):
        model = UnifiedModel(SMALL, jnp.dtype("float32"), remat)
        return jax.grad(lambda v: (model.apply(v, rows)[0] ** 2).sum())(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient("none"), gradient("block")
    )

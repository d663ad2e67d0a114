"""The CNN baselines against timm: same outputs, batch statistics and gradients with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitscale.config import ModelConfig
from vitscale.errors import UserError
from vitscale.models.convert.resnet_timm import (
    COUNTER,
    expected_timm_shapes,
    params_to_timm,
    timm_to_params,
)
from vitscale.models.resnet import PRESETS, ResNet

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

CLASSES = 10


def images(batch, height, width, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, height, width, 3), np.float32)


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def random_timm(timm, variant, batch):
    """A timm model with random affine parameters, and running statistics near (but not at) those of `batch`.

    Statistics far from the truth would let activations grow by orders of magnitude over 30 blocks.
    """
    torch.manual_seed(0)
    model = timm.create_model(variant, num_classes=CLASSES)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    with torch.no_grad():
        for name, norm in norms.items():
            # The last norm of a branch is small, so that the sum over 33 blocks stays small.
            low, high = (0.1, 0.5) if name.endswith("bn3") else (0.5, 1.5)
            norm.weight.uniform_(low, high)
            norm.bias.normal_(0, 0.2)
            norm.momentum = 1.0
        model.train()(to_torch(batch))
        for norm in norms.values():
            norm.momentum = 0.1
            norm.running_mean += 0.1 * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)
    return model


def arrays(model):
    # Copies: torch updates running statistics in place.
    return {n: t.detach().numpy().copy() for n, t in model.state_dict().items()}


def fill(state, params):
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state(
        [(p, v.replace(jnp.asarray(params["/".join(map(str, p))]))) for p, v in flat]
    )


def flatten(*states):
    return {
        "/".join(map(str, p)): np.asarray(v.get_value())
        for state in states
        for p, v in nnx.to_flat_state(state)
    }


def split_resnet(config, params):
    abstract = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    graphdef, trained, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    return graphdef, fill(trained, params), fill(stats, params)


def largest(x):
    return float(np.abs(np.asarray(x)).max())


@pytest.mark.parametrize(
    ("variant", "height", "width"), [("resnet50", 90, 75), ("seresnext101_32x8d", 64, 64)]
)
def test_evaluation_matches_timm(timm, variant, height, width):
    x = images(2, height, width)
    model = random_timm(timm, variant, x).eval()
    config = ModelConfig(variant=variant, image_size=(height, width))
    split = split_resnet(config, timm_to_params(arrays(model), config))
    features = jax.jit(lambda *s: nnx.merge(*s[:-1])(s[-1]))(*split, x)
    with torch.no_grad():
        final = model.forward_features(to_torch(x))
        expected = model(to_torch(x)).numpy()
    weight, bias = (t.detach().numpy() for t in (model.fc.weight, model.fc.bias))
    logits = np.asarray(features.pooled) @ weight.T + bias
    assert 0.01 < expected.std() < 100
    assert largest(logits - expected) < 1e-4
    tokens = final.flatten(2).transpose(1, 2).numpy()
    assert features.tokens.shape == tokens.shape
    assert largest(features.tokens - tokens) < 1e-4 * largest(tokens)


@pytest.fixture(scope="module")
def training_step(timm):
    """ResNet-50, one training forward and backward pass of the same scalar loss in timm and here."""
    x = images(4, 64, 64)
    model = random_timm(timm, "resnet50", x)
    config = ModelConfig(variant="resnet50", image_size=64)
    graphdef, trained, stats = split_resnet(config, timm_to_params(arrays(model), config))
    weight, bias = (t.detach().numpy() for t in (model.fc.weight, model.fc.bias))
    cotangent = np.random.default_rng(1).standard_normal((4, CLASSES)).astype(np.float32)

    def loss(trained, stats, x):
        resnet = nnx.merge(graphdef, trained, stats, copy=True)
        logits = resnet(x, train=True).pooled @ weight.T + bias
        return (logits * cotangent).sum(), (logits, nnx.state(resnet, nnx.BatchStat))

    (_, (logits, updated)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        trained, stats, x
    )
    ours = {
        "logits": np.asarray(logits),
        "stats": params_to_timm(flatten(trained, updated), config),
        "grads": params_to_timm(flatten(grads, stats), config),
    }
    expected = model.train()(to_torch(x))
    (expected * torch.from_numpy(cotangent)).sum().backward()
    return ours, expected.detach().numpy(), model


def test_training_forward_matches_timm(training_step):
    ours, expected, _ = training_step
    assert expected.std() > 0.01
    assert largest(ours["logits"] - expected) < 1e-4


def test_running_statistics_match_timm(training_step):
    ours, _, model = training_step
    after = arrays(model)
    names = [n for n in after if n.endswith(("running_mean", "running_var"))]
    assert len(names) == 2 * 53
    for name in names:
        np.testing.assert_allclose(
            ours["stats"][name], after[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_gradients_match_timm(training_step):
    ours, _, model = training_step
    wrong = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("fc."):
            expected = parameter.grad.numpy()
            error = largest(ours["grads"][name] - expected) / largest(expected)
            if not error < 1e-3:
                wrong[name] = error
    assert not wrong


@pytest.mark.parametrize("variant", PRESETS)
def test_names_and_shapes_are_those_of_timm(timm, variant):
    with torch.device("meta"):
        state = timm.create_model(variant, num_classes=0).state_dict()
    shapes = {n: tuple(t.shape) for n, t in state.items() if not n.endswith(COUNTER)}
    assert expected_timm_shapes(ModelConfig(variant=variant)) == shapes


@pytest.mark.parametrize("variant", PRESETS)
def test_round_trip_is_exact(variant):
    config = ModelConfig(variant=variant)
    rng = np.random.default_rng(0)
    tensors = {n: rng.random(s, np.float32) for n, s in expected_timm_shapes(config).items()}
    params = timm_to_params({**tensors, "fc.bias": np.zeros(3), f"bn1.{COUNTER}": 7}, config)
    back = params_to_timm(params, config)
    counters = {n for n in back if n.endswith(COUNTER)}
    assert len(counters) == sum(n.endswith("running_var") for n in tensors)
    assert all(back[n].dtype == np.int64 and back[n] == 0 for n in counters)
    assert back.keys() - counters == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_wrong_weights_are_refused_by_name():
    config = ModelConfig(variant="resnet50")
    tensors = {n: np.zeros(s, np.float32) for n, s in expected_timm_shapes(config).items()}
    extra = {"layer3.22.conv1.weight": np.zeros(1)}
    with pytest.raises(UserError, match=r"have 'layer3\.22\.conv1\.weight'.*resnet50 has no"):
        timm_to_params({**tensors, **extra}, config)
    with pytest.raises(UserError, match=r"conv1\.weight.*\(64, 3, 3, 3\).*\(64, 3, 7, 7\)"):
        timm_to_params({**tensors, "conv1.weight": np.zeros((64, 3, 3, 3))}, config)
    del tensors["bn1.bias"]
    with pytest.raises(UserError, match=r"lack 'bn1\.bias'"):
        timm_to_params(tensors, config)
    with pytest.raises(UserError, match="cnn_norm='group_ws'"):
        expected_timm_shapes(ModelConfig(variant="resnet50", cnn_norm="group_ws"))

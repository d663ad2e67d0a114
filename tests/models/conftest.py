"""The public implementations that our models are compared with (extra `torch`)."""

import pytest


def import_reference(name):
    """timm or transformers.

    Both import torchvision, whose PyPI wheel beside a CPU torch fails on two detection operators that nobody calls.
    """
    torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor"
            )
    except ImportError:
        pass
    return pytest.importorskip(name, reason="needs the extra 'torch'")


@pytest.fixture(scope="session")
def timm():
    return import_reference("timm")


@pytest.fixture(scope="session")
def transformers():
    return import_reference("transformers")


@pytest.fixture
def random_checkpoint():
    """A function from model options to a `LoadedModel` whose variables are all random, with one head of 7 classes."""
    from pathlib import Path

    import numpy as np

    from vitscale.config import ModelConfig, TaskConfig
    from vitscale.models.multitask import define_model
    from vitscale.models.weights import LoadedModel

    def make(head=True, **options):
        config = ModelConfig(**{"variant": "mu/8", "depth": 2, "image_size": 16, **options})
        tasks = (TaskConfig("label", "single_label"),) if head else ()
        classes = {"label": list("abcdefg")} if head else {}
        definition = define_model(config, tasks, classes)
        rng = np.random.default_rng(0)
        params = {}
        for name, spec in definition.variable_shapes().items():
            noise = 0.2 * rng.standard_normal(spec.shape, np.float32)
            params[name] = np.abs(noise) + 0.5 if name.endswith(("/var", "/scale")) else noise
        return LoadedModel(config, tasks, classes, 0, Path("random"), definition, params)

    return make

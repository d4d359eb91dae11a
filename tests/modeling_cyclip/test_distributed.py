"""Several processes against one with all their pairs: the loss, and the model under DDP and FSDP2, cached or not."""

import itertools
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from modeling_cyclip import CyCLIPConfig, CyCLIPModel, blockwise, cyclip_loss
from modeling_cyclip.fsdp import make_logit_scale_one_dimensional
from modeling_cyclip.gradient_cache import cached_step
from modeling_cyclip.softmaxes import OneExponential, TwoExponentials
from tests.distributed import run_distributed


N = 24
DIMS = (8, 32)  # Gram matrices, and whole ones
WEIGHTS = {"inmodal_cyclic_weight": 0.3, "crossmodal_cyclic_weight": 0.2, "cyclic_reference_batch_size": 16}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
CASES = [
    (dtype, wrapper, chunk, views)
    for dtype, views in ((torch.float32, False), (torch.float64, False), (torch.float64, True))
    for wrapper in ("ddp", "fsdp2")
    for chunk in (None, 2)
]


def make_embeds(dtype, dim):
    """Raw features of images, texts and their augmented views, a shared weight that all of them pass through, and a scale."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(N, dim, generator=generator, dtype=dtype) for _ in range(4)]
    weight = torch.randn(dim, dim, generator=generator, dtype=dtype, requires_grad=True)
    return features, weight, torch.tensor(2.5, dtype=dtype, requires_grad=True)


def loss_and_gradients(features, weight, log_scale, process_group):
    """Without, with augmented views, and with a bound on the cyclic gradient."""
    image_embeds, text_embeds, *views = (F.normalize(x @ weight, dim=-1) for x in features)
    options = {**WEIGHTS, "process_group": process_group}
    plain = cyclip_loss(image_embeds, text_embeds, log_scale.exp(), **options)
    views = dict(zip(("augmented_image_embeds", "augmented_text_embeds"), views, strict=True))
    with_views = cyclip_loss(image_embeds, text_embeds, log_scale.exp(), **options, **views)
    bounded = cyclip_loss(image_embeds, text_embeds, log_scale.exp(), **options, cyclic_max_gradient_share=0.1)
    assert bounded.cyclic_gradient_factor < 1
    parts = [part.detach() for part in (*plain[:4], *with_views[:5], *bounded[:4], bounded.cyclic_gradient_factor)]
    gradients = [
        gradient
        for output in (plain, with_views, bounded)
        for gradient in torch.autograd.grad(output.loss, (weight, log_scale), retain_graph=True)
    ]
    return parts, gradients


def make_model(dtype):
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CyCLIPConfig(
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        text_config={**tower, "vocab_size": 64, "max_position_embeddings": 8, "eos_token_id": 63},
        projection_dim=12,
        **WEIGHTS,
    )
    return CyCLIPModel(config).to(dtype).train()


def make_inputs(dtype, views):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 60, (N, 6), generator=generator)
    input_ids[:, -1] = 63
    inputs = {"input_ids": input_ids, "pixel_values": torch.randn(N, 3, 16, 16, generator=generator).to(dtype)}
    if views:
        inputs.update({f"augmented_{name}": tensor.roll(5, dims=-1) for name, tensor in inputs.items()})
    return inputs


def step(model, unwrapped, inputs, chunk, no_sync):
    """One loss with its gradients in the parameters."""
    if chunk is None:
        loss = model(**inputs, return_loss=True).loss
        loss.backward()
        return loss.item()
    return cached_step(model, inputs, chunk, unwrapped.compute_loss, torch.Tensor.backward, no_sync)[0].loss.item()


@contextmanager
def without_gradient_sync(model):
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def one_of_several(rank, world_size, file):
    """Largest error of any loss or gradient, relative to its norm, for the functional loss and for every case."""
    reference = torch.load(file)
    rows = slice(rank * N // world_size, (rank + 1) * N // world_size)
    errors = {}
    for dtype in TOLERANCES:
        for dim, way in itertools.product(DIMS, (OneExponential, TwoExponentials)):  # the second way is that of a GPU
            blockwise.OneExponential = way
            features, weight, log_scale = make_embeds(dtype, dim)
            parts, gradients = loss_and_gradients([x[rows] for x in features], weight, log_scale, dist.group.WORLD)
            for gradient in gradients:  # what DistributedDataParallel does
                dist.all_reduce(gradient)
                gradient /= world_size
            error = relative_error([*parts, *gradients], reference["loss", dtype, dim])
            errors["loss", dtype, dim, way.__name__] = error
    blockwise.OneExponential = OneExponential
    for dtype, wrapper, chunk, views in CASES:
        unwrapped = model = make_model(dtype)
        make_logit_scale_one_dimensional(unwrapped)
        inputs = {name: tensor[rows] for name, tensor in make_inputs(dtype, views).items()}
        if wrapper == "ddp":
            model = DistributedDataParallel(unwrapped, find_unused_parameters=True)
            no_sync = model.no_sync
        else:
            model = fully_shard(unwrapped)
            assert isinstance(model, FSDPModule) and unwrapped.logit_scale.to_local().numel() <= 1
            no_sync = lambda model=model: without_gradient_sync(model)  # noqa: E731
        loss = step(model, unwrapped, inputs, chunk, no_sync)
        gradients = [parameter.grad for parameter in unwrapped.parameters()]
        if wrapper == "fsdp2":
            gradients = [gradient.full_tensor() for gradient in gradients]
        case = dtype, wrapper, chunk, views
        errors[case] = relative_error([torch.tensor(loss), *gradients], reference["model", dtype, views])
    return errors


def relative_error(actual, expected):
    # Gradients that are zero but for rounding (biases of keys) are measured by the largest.
    scale = 1e-2 * max(tensor.norm() for tensor in expected)
    return max(
        ((a.reshape(e.shape) - e).norm() / (e.norm() + scale)).item() for a, e in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_loss_and_gradients_equal_those_of_one_process(world_size, tmp_path):
    reference = {}
    for dtype in TOLERANCES:
        for dim in DIMS:
            parts, gradients = loss_and_gradients(*make_embeds(dtype, dim), None)
            reference["loss", dtype, dim] = [*parts, *gradients]
    for dtype, views in {(dtype, views) for dtype, _, _, views in CASES}:
        model = make_model(dtype)
        loss = step(model, model, make_inputs(dtype, views), None, nullcontext)
        gradients = [parameter.grad for parameter in model.parameters()]
        reference["model", dtype, views] = [torch.tensor(loss), *gradients]
    torch.save(reference, tmp_path / "reference.pt")

    for errors in run_distributed(one_of_several, world_size, tmp_path, tmp_path / "reference.pt"):
        assert set(errors) == set(
            itertools.product(["loss"], TOLERANCES, DIMS, ["OneExponential", "TwoExponentials"])
        ) | set(CASES)
        for case, error in errors.items():
            dtype = case[1] if case[0] == "loss" else case[0]
            assert error <= TOLERANCES[dtype], case

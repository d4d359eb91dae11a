"""Several processes against one with all their pairs."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from modeling_cyclip import cyclip_loss
from tests.distributed import run_distributed


N, DIM = 24, 8
WEIGHTS = {"inmodal_cyclic_weight": 0.3, "crossmodal_cyclic_weight": 0.2, "cyclic_reference_batch_size": 16}


def make_inputs(dtype):
    """Raw features, a shared weight that all of them pass through, and a scale."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(N, DIM, generator=generator, dtype=dtype) for _ in range(2)]
    weight = torch.randn(DIM, DIM, generator=generator, dtype=dtype, requires_grad=True)
    return features, weight, torch.tensor(2.5, dtype=dtype, requires_grad=True)


def loss_and_gradients(features, weight, log_scale, process_group):
    embeds = [F.normalize(x @ weight, dim=-1) for x in features]
    output = cyclip_loss(*embeds, log_scale.exp(), **WEIGHTS, process_group=process_group)
    return output, torch.autograd.grad(output.loss, (weight, log_scale))


def one_of_several(rank, world_size, dtype):
    features, weight, log_scale = make_inputs(dtype)
    n = N // world_size
    local = [x[rank * n : (rank + 1) * n] for x in features]
    output, gradients = loss_and_gradients(local, weight, log_scale, dist.group.WORLD)
    for gradient in gradients:  # what DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= world_size
    return [part.item() for part in output], [gradient.tolist() for gradient in gradients]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_loss_and_averaged_gradients_equal_those_of_one_process(world_size, dtype, tolerance, tmp_path):
    features, weight, log_scale = make_inputs(dtype)
    expected, expected_gradients = loss_and_gradients(features, weight, log_scale, None)

    for parts, gradients in run_distributed(one_of_several, world_size, tmp_path, dtype):
        assert parts == pytest.approx([part.item() for part in expected], rel=tolerance)
        for gradient, reference in zip(gradients, expected_gradients, strict=True):
            difference = torch.tensor(gradient, dtype=dtype) - reference
            assert difference.norm() <= tolerance * reference.norm()

"""In-batch recall by blocks of rows."""

import pytest
import torch
import torch.nn.functional as F

from modeling_cyclip.blockwise import in_batch_recall


def test_recall_equals_the_argmax_of_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    image_embeds = F.normalize(torch.randn(600, 16, generator=generator), dim=-1)
    text_embeds = F.normalize(image_embeds + 0.5 * torch.randn(600, 16, generator=generator), dim=-1)
    similarities = image_embeds @ text_embeds.T
    expected = [(similarities.argmax(dim=dim) == torch.arange(600)).double().mean().item() for dim in (1, 0)]
    assert [recall.item() for recall in in_batch_recall(image_embeds, text_embeds)] == pytest.approx(
        expected, abs=1e-6
    )


def test_collapsed_embeddings_score_chance():
    embeds = F.normalize(torch.ones(50, 8), dim=-1)
    assert [recall.item() for recall in in_batch_recall(embeds, embeds)] == pytest.approx([1 / 50] * 2)

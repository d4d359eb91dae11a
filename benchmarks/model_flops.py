"""The FLOPs of a CLIP, and the peak of a GPU, for the share of it that a training uses.

Model-FLOPs utilisation is pairs a second x the model's FLOPs a pair / the device's peak. Of a tower with L layers of width w
(and 4w in its MLPs) on n tokens, the forward pass takes n L (24 w^2 + 4 n w) FLOPs; to this come the patches and the two
projections, and the backward pass takes twice the forward one. The passes that the gradient cache repeats, the loss and the
optimizer count as none. The peak is the data sheet's for dense bf16.
"""

# Dense bf16, from NVIDIA's data sheets; the first name that the device's contains.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312}


def tower_flops(width, layers, tokens):
    return tokens * layers * (24 * width**2 + 4 * tokens * width)


def flops_per_pair(config):
    """Of the model, forward and backward, for one image and a caption of the full context (77 tokens)."""
    vision, text = config.vision_config, config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    forward = (
        tower_flops(vision.hidden_size, vision.num_hidden_layers, patches + 1)
        + tower_flops(text.hidden_size, text.num_hidden_layers, text.max_position_embeddings)
        + 2 * patches * 3 * vision.patch_size**2 * vision.hidden_size
        + 2 * config.projection_dim * (vision.hidden_size + text.hidden_size)
    )
    return 3 * forward


def known_peak(device_name):
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)

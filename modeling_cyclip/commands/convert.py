"""Brings weights of CyCLIP's official code, OpenAI's CLIP or OpenCLIP into a checkpoint folder, and back.

cyclip convert epoch_64.pt checkpoint
cyclip convert checkpoint weights.safetensors
"""

import argparse
import sys
from pathlib import Path

from ..convert import CLIP_VOCABULARY, export_checkpoint, import_checkpoint


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        description="Convert weights of CyCLIP's official code, OpenAI's CLIP or OpenCLIP to a checkpoint folder, or a "
        "checkpoint to a state dict that OpenCLIP loads.",
    )
    parser.add_argument(
        "source", help="a file of weights (.pt, .bin, .safetensors), or a checkpoint: folder, Hub name"
    )
    parser.add_argument("target", help="the new folder for a file, the new file (.pt, .safetensors) for a checkpoint")
    parser.add_argument(
        "--vocabulary",
        help="vocabulary: a file (bpe_simple_vocab_16e6.txt.gz), a folder, a name on the Hub, or 'none'. Default: "
        f"{CLIP_VOCABULARY}, or none where this does not fit or cannot be downloaded",
    )
    parser.add_argument(
        "--hidden_act",
        choices=["quick_gelu", "gelu"],
        help="activation of the transformers. Default: what an open_clip_config.json beside the file says, else "
        "quick_gelu, as in the official code and OpenAI's. Most models that OpenCLIP trained have gelu",
    )
    parser.add_argument("--vision_heads", type=int, help="attention heads. Default: one for every 64 channels")
    parser.add_argument("--text_heads", type=int, help="attention heads. Default: one for every 64 channels")
    options = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    source, target = Path(options.pop("source")), Path(options.pop("target"))
    try:
        if source.is_file():
            model = import_checkpoint(source, target, **options)
        elif source.suffix in (".pt", ".pth", ".bin", ".safetensors") and not source.is_dir():
            raise FileNotFoundError(f"There is no file {source}.")
        elif options:
            raise ValueError(f"These say how to read a file, and {source} is none: --{', --'.join(options)}.")
        else:
            model = export_checkpoint(source, target)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    text, vision = model.config.text_config, model.config.vision_config
    print(
        f"{target}: {type(model).__name__}, {model.num_parameters():,} parameters, images of {vision.image_size} pixels, "
        f"texts of {text.max_position_embeddings} tokens out of {text.vocab_size}, {text.hidden_act}"
    )


if __name__ == "__main__":
    main()

"""Test that the published code loads a folder of this package and generates the golden image.

blip-diffusion convert tests/parity/golden/pipe --out DIR
PYTHONPATH=peers python tests/parity/read_back.py DIR    # `make_golden.py` says how `peers` is made
"""

import argparse
from pathlib import Path

import make_golden
import numpy as np
from diffusers.pipelines.blip_diffusion.modeling_blip2 import Blip2QFormerModel
from transformers.models.blip_2.configuration_blip_2 import Blip2Config

GOLDEN = Path(__file__).parent / "golden"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    config = Blip2Config.from_pretrained(folder / "qformer")
    config.tokenizer = str(GOLDEN / "tok" / "bert")  # it would fetch bert-base-uncased
    encoder, report = Blip2QFormerModel.from_pretrained(folder / "qformer", config=config, output_loading_info=True)
    pipe = make_golden.BlipDiffusionPipeline.from_pretrained(folder, qformer=encoder)
    reference, _, latents = make_golden.inputs()
    options = {"height": 32, "width": 32, "output_type": "pt", "num_inference_steps": 5, "latents": latents}
    image = pipe("swimming underwater", reference, "teapot", "dog", **options).images
    with np.load(GOLDEN / "dump.npz") as golden:
        error = float(np.abs(image.numpy() - golden["image"]).max())
    print(f"{report}; the image differs from golden's by at most {error:.1e}")
    assert error <= 5e-5, "too far apart"


if __name__ == "__main__":
    main()

"""The classifier: backbone by the Auto classes, head, LoRA, quantization, masks and the checkpoint folder."""

import logging
import os

from wsdm_ray.storage import OFFLINE_BY_US

# No part of this package may reach for a hub: models are folders. `storage` fetches what a user names.
if "HF_HUB_OFFLINE" not in os.environ:
    os.environ |= {"HF_HUB_OFFLINE": "1", OFFLINE_BY_US: "1"}
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

# bitsandbytes says at every product that inputs are cast to float16, which is how LLM.int8() works.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

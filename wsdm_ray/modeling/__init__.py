"""The classifier: backbone by the Auto classes, head, LoRA, quantization, masks and the checkpoint folder."""

import logging
import os

# No part of this package may reach for a hub: models are folders.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

# bitsandbytes says at every product that inputs are cast to float16, which is how LLM.int8() works.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

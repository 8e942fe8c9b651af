"""Training on a GPU beside int8 weights that are dequantized for each GEMM."""

import pytest
import torch

from tests.gpu.models import DEVICE, FAMILIES, make_config, network_of, random_pairs
from wsdm_ray.config import HeadConfig, LoraConfig

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes for int8 weights")
pytest.importorskip("peft", reason="needs PEFT for adapters")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_beside_int8_weights_lowers_the_loss(family, tmp_path):
    from wsdm_ray.modeling.classifier import add_lora, load_network
    from wsdm_ray.modeling.weight_only_int8 import WeightOnlyInt8Linear, use_weight_only_int8

    network_of(family).save_pretrained(tmp_path)
    base = load_network(
        str(tmp_path), HeadConfig(kind="linear"), seed=0, device=DEVICE, dtype=torch.bfloat16,
        quantization="bnb-int8",
    )  # fmt: skip
    network = use_weight_only_int8(add_lora(base, LoraConfig(r=4, dropout=0.0), seed=0)).train()
    layers = make_config(family).num_hidden_layers
    assert sum(isinstance(module, WeightOnlyInt8Linear) for module in network.modules()) == 7 * layers

    prompts, *_ = random_pairs([(96, 1, 1)] * 4)
    tokens = torch.stack([torch.from_numpy(ids).long() for ids in prompts]).to(DEVICE)
    labels = torch.tensor([0, 1, 1, 0], device=DEVICE)

    def loss_of() -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):  # as in training
            logits = network(input_ids=tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3)
    before = loss_of()
    before.backward()
    for name, weight in weights.items():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        if "lora_B" in name or "score" in name:  # A has no gradient while B is zero
            assert weight.grad.any(), name
    optimizer.step()
    assert loss_of() < before

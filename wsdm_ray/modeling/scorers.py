"""What the scoring engine runs: a classifier of the fused decoder, whose batches have one static shape."""

import numpy as np
import torch
from torch import Tensor, nn

from wsdm_ray.modeling.attention import BLOCK, AttentionBackend, scoring_backend, to_device
from wsdm_ray.modeling.fused_decoder import FusedDecoder
from wsdm_ray.packing.layouts import Layout, round_up

__all__ = ["FusedClassifier", "in_one_row", "round_up_to_block"]


class FusedClassifier(nn.Module):
    """A stack with a classifier's head; scores as the network does that it stands for.

    static_shapes: whether all passes should be of one number of tokens (`row_tokens` of `in_one_row`), as
        each number is compiled for itself. sparse: whether attention is by blocks, where the tokens divide.

    Args:
        head: of `make_head`, on any device.
    """

    def __init__(self, stack: FusedDecoder, head: nn.Module):
        super().__init__()
        self.stack = stack
        self.score = head.to(stack.embedding_VD.device)
        self.static_shapes = self.sparse = stack.embedding_VD.is_cuda
        self.attention_backends: dict[int, AttentionBackend] = {}
        """By the tokens of a pass: one compilation each."""

    def forward(self, layout: Layout) -> Tensor:
        """Logits of each ordering of a pass: float32 [S, 2], (first response wins, second wins)."""
        device = self.stack.embedding_VD.device
        tokens_T, positions_T, last_S = (
            to_device(each.reshape(-1), device)
            for each in (layout.tokens_BT, layout.positions_BT, layout.last_S)
        )
        dtype = next(self.score.parameters()).dtype
        return self.stack(
            tokens_T,
            positions_T,
            self.attention_backend(layout),
            last_S,
            lambda x_SD: self.score(x_SD.to(dtype)),
        ).float()

    @property
    def alignment(self) -> int:
        """Of groups in a pass (`lay_out`), so that neighbours change no bit of a result."""
        return self.stack.tiling.alignment if self.sparse else 1

    def attention_backend(self, layout: Layout) -> AttentionBackend:
        shape, device, tiling = self.stack.shape, self.stack.embedding_VD.device, self.stack.tiling
        tokens = layout.tokens_BT.size
        if not self.sparse or tokens % BLOCK:
            return scoring_backend(shape, device, tiling).update(layout)
        if tokens not in self.attention_backends:
            with torch.inference_mode(False):  # tensors made in inference can be overwritten there alone
                self.attention_backends[tokens] = scoring_backend(shape, device, tiling, tokens)
        return self.attention_backends[tokens].update(in_one_row(layout))

    def warm_up(self, row_tokens: int) -> None:
        """Run one pass of `row_tokens` tokens that says nothing, so that all is compiled.

        With it the masks of passes in which the window takes nothing away, and of those in which it does.
        """
        one = np.zeros((1, 1), np.int64)
        near, far = (
            in_one_row(Layout(one, one + at, one.astype(np.int32), one.astype(np.int32), one[0]), row_tokens)
            for at in (0, min(row_tokens - 1, self.stack.shape.sliding_window or 0))
        )
        with torch.inference_mode():
            self.attention_backend(far)
            self(near).cpu()


def round_up_to_block(tokens: int) -> int:
    """`tokens`, rounded up to a multiple of `BLOCK`."""
    return round_up(tokens, BLOCK)


def in_one_row(layout: Layout, row_tokens: int = 0) -> Layout:
    """A pass as one row, its rows end to end, with padding up to `row_tokens`.

    No group may be in two rows.
    """
    flat = {
        name: getattr(layout, name).reshape(-1)
        for name in ("tokens_BT", "positions_BT", "groups_BT", "branches_BT")
    }
    more = max(row_tokens - layout.tokens_BT.size, 0)
    filled = {
        name: np.pad(values, (0, more), constant_values=-1 if name == "groups_BT" else 0)[None]
        for name, values in flat.items()
    }
    return Layout(last_S=layout.last_S, **filled)

"""Ops: one public function each, with several implementations and one table that chooses among them (``dispatch``).

Arrays are ``(batch, length, heads, head_dim)``. Every op takes ``implementation=``, a name or None for the best one
that supports the call; :func:`pallas_kernels.dispatch.recording` reports which was chosen.
"""

from pallas_kernels.attention import attention, attention_weights, masks, merge
from pallas_kernels.delta_rule import delta_rule
from pallas_kernels.depthwise_convolution import depthwise_convolution
from pallas_kernels.linear_attention import linear_attention
from pallas_kernels.linear_scan import linear_scan
from pallas_kernels.neighborhood_attention import neighborhood_attention, neighborhood_average, neighborhood_scores
from pallas_kernels.selective_scan import selective_scan
from pallas_kernels.short_convolution import short_convolution
from pallas_kernels.toeplitz_product import toeplitz_product

__all__ = [
    "attention",
    "attention_weights",
    "delta_rule",
    "depthwise_convolution",
    "linear_attention",
    "linear_scan",
    "masks",
    "merge",
    "neighborhood_attention",
    "neighborhood_average",
    "neighborhood_scores",
    "selective_scan",
    "short_convolution",
    "toeplitz_product",
]

"""Kernel sizes by module name, for kinds that store a convolution as its flattened matrix (LoHa, LoKr of
2023).
"""

from __future__ import annotations

import re

_THREE = re.compile(
    r"_(?:resnets_\d+_conv[12]|downsamplers_\d+_conv|upsamplers_\d+_conv|conv_in|conv_out"
    r"|(?:in_layers_2|out_layers_3)|input_blocks_(?:0_0|[369]_0_op)|output_blocks_\d+_[12]_conv|out_2)$"
)


def kernel_of(name: str, columns: int) -> tuple[int, ...]:
    """Return (3, 3) for a module known to be a 3×3 convolution, () otherwise.

    Args:
        name: canonical module name.
        columns: in·kh·kw; a 3×3 kernel needs a multiple of 9.
    """
    return (3, 3) if columns % 9 == 0 and _THREE.search(name) else ()

"""Linear layers and experts whose weights are kept in 8 or 4 bits, to train beside and to answer from."""

from litgpt.quantize.linear import QuantizedLinear as QuantizedLinear
from litgpt.quantize.linear import dense_weight as dense_weight
from litgpt.quantize.model import MODES as MODES
from litgpt.quantize.model import check_quantization as check_quantization
from litgpt.quantize.model import is_quantized as is_quantized
from litgpt.quantize.model import make_layer as make_layer
from litgpt.quantize.model import quantize_model as quantize_model
from litgpt.quantize.model import replace_linears as replace_linears

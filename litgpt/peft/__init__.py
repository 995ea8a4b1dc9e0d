"""Training methods: how one changes a model, what it owns, and several LoRA adapters at once."""

from litgpt.peft.adapter import Adapter as Adapter
from litgpt.peft.adapter_bank import AdapterBank as AdapterBank
from litgpt.peft.adapter_v2 import AdapterV2 as AdapterV2
from litgpt.peft.lora import LoRA as LoRA
from litgpt.peft.method import Full as Full
from litgpt.peft.method import Method as Method
from litgpt.peft.method import Wrapped as Wrapped
from litgpt.peft.method import WrappedExperts as WrappedExperts
from litgpt.peft.method import WrappedLinear as WrappedLinear
from litgpt.peft.method import base_name as base_name
from litgpt.peft.method import base_state as base_state
from litgpt.peft.method import empty_parameter as empty_parameter
from litgpt.peft.method import freeze_others as freeze_others
from litgpt.peft.method import load_owned as load_owned
from litgpt.peft.method import merged_weights as merged_weights
from litgpt.peft.method import narrow_frozen as narrow_frozen
from litgpt.peft.method import owned_state as owned_state
from litgpt.peft.method import parameter_counts as parameter_counts
from litgpt.peft.method import switched_off as switched_off
from litgpt.peft.method import unwrap_modules as unwrap_modules
from litgpt.peft.method import wrap_modules as wrap_modules
